"""Every knob of the service, its unit, and its `ESVIT_` environment variable."""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.images import ImageLimits

DEFAULT_MODEL = Path(__file__).parent / "models" / "default.onnx"

EngineName = Literal["auto", "onnxruntime", "openvino"]
Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Settings(BaseSettings):
    """Settings from keyword arguments or the environment; `max_images` is `ESVIT_MAX_IMAGES`."""

    model_config = SettingsConfigDict(
        env_prefix="ESVIT_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    model: Path = Field(DEFAULT_MODEL, description="model file, as trainer.export_onnx writes it")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")

    engine: EngineName = Field("auto", description="what runs the model")
    device: Device = Field("auto", description="where the model runs")
    precision: Precision = Field("auto", description="arithmetic; auto: fastest that is faithful")
    threads: int = Field(0, ge=0, description="threads for inference and decoding; 0: the cores")
    max_batch: int = Field(0, ge=0, description="images a run of the engine; 0: the engine's best")

    max_body_bytes: int = Field(20_000_000, ge=1, description="bytes of one request's body")
    max_bodies_bytes: int = Field(256_000_000, ge=1, description="bytes of all bodies held at once")
    max_images: int = Field(64, ge=1, description="images in one request")
    max_image_pixels: int = Field(50_000_000, ge=1, description="width x height of one image")
    max_image_aspect: int = Field(200, ge=1, description="longer side / shorter side of one image")
    image_formats: tuple[str, ...] = Field(("JPEG", "PNG", "WEBP"), description="Pillow's names")
    max_points: int = Field(1000, ge=1, description="points asked for in one /correspond")
    max_queue_images: int = Field(256, ge=1, description="images accepted and not yet answered")
    deadline_s: float = Field(30.0, gt=0, description="seconds until an accepted call is given up")
    body_timeout_s: float = Field(30.0, gt=0, description="seconds for a body to arrive")
    shutdown_grace_s: int = Field(
        30, ge=1, description="seconds to finish accepted calls at the end"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="verbosity")

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        """A request of the largest size must fit into the queue, or it could never be served."""
        if self.max_queue_images < self.max_images:
            raise ValueError(
                f"max_queue_images is {self.max_queue_images}, expected at least max_images "
                f"({self.max_images})"
            )
        return self

    @property
    def num_threads(self) -> int:
        """Threads to use: as asked, else one for each core this process may run on."""
        if self.threads:
            return self.threads
        if hasattr(os, "sched_getaffinity"):  # Linux
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    @property
    def image_limits(self) -> ImageLimits:
        """What an image may be."""
        return ImageLimits(
            max_pixels=self.max_image_pixels,
            max_aspect=self.max_image_aspect,
            formats=self.image_formats,
        )

    def limits(self) -> dict[str, int | float | tuple[str, ...]]:
        """Give the limits that `/info` shows."""
        names = (
            "max_body_bytes",
            "max_images",
            "max_image_pixels",
            "max_image_aspect",
            "image_formats",
            "max_points",
            "max_queue_images",
            "deadline_s",
            "body_timeout_s",
        )
        return {name: getattr(self, name) for name in names}
