"""Every knob of the service, its unit, and its `ESVIT_` environment variable."""

import os
import re
import ssl
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    FilePath,
    IPvAnyNetwork,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.images import FORMATS, ImageLimits
from service.passage import BYTES_PER_NUMBER

DEFAULT_MODEL = Path(__file__).parent / "models" / "default.onnx"

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")
"""Scheme, host and perhaps port (RFC 6454, 6.1): no path, nor a slash at the end."""

EngineName = Literal["auto", "onnxruntime", "openvino"]
Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

MIN_KEY_LENGTH = 16


def _split(value: object) -> object:
    """Read a list as the environment holds it, with commas between."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return value


def _is_installed(module: str) -> bool:
    """Tell whether a module is there, without loading it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it lies in is not there
        return False


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]
Networks = Annotated[tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Settings from keyword arguments or the environment; `max_images` is `ESVIT_MAX_IMAGES`."""

    model_config = SettingsConfigDict(
        env_prefix="ESVIT_",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # it could be a key
    )

    model: Path = Field(DEFAULT_MODEL, description="model file, as trainer.export_onnx writes it")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")

    reload_every_s: float = Field(
        0.0, ge=0, description="seconds between looks for a new model file; 0: on SIGHUP only"
    )
    engine: EngineName = Field("auto", description="what runs the model")
    device: Device = Field("auto", description="where the model runs")
    precision: Precision = Field("auto", description="arithmetic; auto: fastest that is faithful")
    threads: int = Field(
        0, ge=0, le=1024, description="threads for inference and decoding; 0: the cores"
    )
    max_batch: int = Field(0, ge=0, description="images a run of the engine; 0: the engine's best")

    max_body_bytes: int = Field(
        20_000_000, ge=1, description="bytes of one request's body, unpacked if it is compressed"
    )
    max_bodies_bytes: int = Field(256_000_000, ge=1, description="bytes of all bodies held at once")
    max_header_bytes: int = Field(65_536, ge=1024, description="bytes of one request's head")
    max_images: int = Field(64, ge=1, description="images in one request")
    max_image_pixels: int = Field(50_000_000, ge=1, description="width x height of one image")
    max_image_aspect: int = Field(200, ge=1, description="longer side / shorter side of one image")
    max_image_frames: int = Field(
        1000, ge=1, description="frames of an animation, of which the first is used"
    )
    max_decoded_bytes: int = Field(
        100_000_000, ge=1, description="bytes of memory one image may take while it is decoded"
    )
    image_formats: Words = Field(
        ("JPEG", "PNG", "WEBP"), description=f"accepted formats, of {', '.join(FORMATS)}"
    )
    max_points: int = Field(1000, ge=1, description="points asked for in one /correspond")
    max_top_k: int = Field(
        1000, ge=1, description="matches asked for in one /correspond, pictures in one search"
    )
    max_answer_numbers: int = Field(10_000_000, ge=1, description="numbers in one answer")
    max_answers_bytes: int = Field(
        256_000_000,
        ge=1,
        description="bytes of all large answers on their way, at 16 a number",
    )
    max_queue_images: int = Field(256, ge=1, description="images accepted and not yet answered")
    max_calls: int = Field(512, ge=1, description="calls with a body under way at once")
    max_connections: int = Field(900, ge=1, description="connections open at once")
    deadline_s: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="seconds until an accepted call is given up"
    )
    header_timeout_s: float = Field(10.0, gt=0, description="seconds for a request's head to come")
    body_timeout_s: float = Field(30.0, gt=0, description="seconds for a body to arrive")
    send_timeout_s: float = Field(
        30.0, gt=0, description="seconds a client may take nothing of its answer"
    )
    shutdown_grace_s: int = Field(
        30, ge=1, description="seconds to finish accepted calls at the end"
    )

    api_keys: Secrets = Field(
        (), description="keys, one of which every call must bring; none: open"
    )
    api_keys_file: Path | None = Field(None, description="file with one key a line, in addition")
    cors_origins: Words = Field((), description="origins whose pages may call, or *; none: no CORS")
    docs: bool = Field(True, description="serve /docs and /openapi.json")

    fetch_urls: bool = Field(False, description="read images given by address")
    url_schemes: Words = Field(("https", "http"), description="schemes of addresses")
    url_hosts: Words = Field(
        (), description="hosts to fetch from, *.example.org, host:port; none: any public one"
    )
    url_networks: Networks = Field(
        (), description="networks, such as 10.1.0.0/16, fetched from though they are not public"
    )
    url_ca_file: FilePath | None = Field(
        None, description="PEM file of authorities to trust for https beside the public ones"
    )
    url_timeout_s: float = Field(10.0, gt=0, description="seconds to fetch one image, in all")
    url_max_bytes: int = Field(20_000_000, ge=1, description="bytes of one call's fetched images")
    url_max_redirects: int = Field(3, ge=0, description="redirects followed, each one checked")

    trace_endpoint: str = Field(
        "", description="where traces go, http://collector:4318/v1/traces; empty: nowhere"
    )
    trace_share: float = Field(1.0, ge=0, le=1, description="share of calls that is traced")

    gallery_path: Path | None = Field(
        None, description="folder of the gallery; with neither this nor gallery_url there is none"
    )
    gallery_url: str | None = Field(
        None, pattern=r"^https?://", description="Qdrant server that holds the gallery"
    )
    gallery_api_key: SecretStr | None = Field(None, description="key of the Qdrant server")
    gallery_collection: str = Field(
        "esvit", pattern=r"^[\w-]{1,64}$", description="the gallery's name on the Qdrant server"
    )
    max_gallery_pictures: int = Field(1_000_000, ge=1, description="pictures in the gallery")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="verbosity")
    log_format: Literal["text", "json"] = Field("text", description="lines of text or of JSON")

    @field_validator("image_formats")
    @classmethod
    def _formats_are_known(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        """Other formats of Pillow's start programs or hide their size."""
        if not formats or not set(formats) <= set(FORMATS):
            raise ValueError(f"expected some of {', '.join(FORMATS)}")
        return formats

    @field_validator("trace_endpoint")
    @classmethod
    def _traces_can_be_sent(cls, endpoint: str) -> str:
        """What is asked for and not installed must not be silently left out."""
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise ValueError("expected an address that begins with http:// or https://")
        if endpoint and not _is_installed("opentelemetry.exporter.otlp.proto.http"):
            raise ValueError("traces need the extra 'otel': pip install '.[otel]'")
        return endpoint

    @field_validator("cors_origins")
    @classmethod
    def _origins_can_be_sent(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        """One that no browser sends would never match."""
        if any(origin != "*" and not ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("expected origins as browsers send them, https://host[:port], or *")
        return origins

    @field_validator("url_schemes")
    @classmethod
    def _schemes_are_known(cls, schemes: tuple[str, ...]) -> tuple[str, ...]:
        """Nothing but HTTP is spoken."""
        if not set(schemes) <= {"http", "https"}:
            raise ValueError("expected http, https or both")
        return schemes

    @field_validator("url_ca_file")
    @classmethod
    def _authorities_can_be_read(cls, path: Path | None) -> Path | None:
        """A file that trusts nobody would refuse every address, one by one."""
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            raise ValueError("expected certificates in PEM") from error
        return path

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        """A request of the largest size must fit into the queue, or it could never be served."""
        if self.max_queue_images < self.max_images:
            raise ValueError(
                f"max_queue_images is {self.max_queue_images}, expected at least max_images "
                f"({self.max_images})"
            )
        return self

    @model_validator(mode="after")
    def _there_is_room_for_an_answer(self) -> Self:
        """An answer of the largest size must fit, or it could never be given."""
        needed = BYTES_PER_NUMBER * self.max_answer_numbers
        if self.max_answers_bytes < needed:
            raise ValueError(
                f"max_answers_bytes is {self.max_answers_bytes}, expected at least "
                f"{BYTES_PER_NUMBER} x max_answer_numbers ({needed})"
            )
        return self

    @model_validator(mode="after")
    def _keys_can_be_used(self) -> Self:
        """A key that is short can be guessed; a file that cannot be read must not open the door."""
        for place, key in self._named_keys():
            if len(key) < MIN_KEY_LENGTH or not key.isascii():
                raise ValueError(
                    f"{place}: an API key is ASCII of at least {MIN_KEY_LENGTH} characters"
                )
        if self.api_keys_file is not None and not self.keys():
            raise ValueError("api_keys_file holds no key")
        return self

    @model_validator(mode="after")
    def _there_is_one_gallery(self) -> Self:
        """A gallery is in a folder or on a server."""
        if self.gallery_path is not None and self.gallery_url is not None:
            raise ValueError("gallery_path and gallery_url are both set; the gallery is in one")
        return self

    def keys(self) -> tuple[str, ...]:
        """Give the API keys of setting and file; none means that no key is asked for."""
        return tuple(key for _, key in self._named_keys())

    def _named_keys(self) -> list[tuple[str, str]]:
        """Give each API key with the place that it stands in."""
        keys = [
            (f"api_keys, number {number}", key.get_secret_value())
            for number, key in enumerate(self.api_keys, 1)
        ]
        if self.api_keys_file is not None:
            try:
                text = self.api_keys_file.read_text()
            except (OSError, UnicodeError) as error:
                raise ValueError("api_keys_file cannot be read") from error
            lines = [line.strip() for line in text.splitlines()]
            keys += [
                (f"api_keys_file, line {number}", line)
                for number, line in enumerate(lines, 1)
                if line and not line.startswith("#")
            ]
        return keys

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
            max_frames=self.max_image_frames,
            max_decoded_bytes=self.max_decoded_bytes,
            formats=self.image_formats,
        )

    def limits(self) -> dict[str, int | float | tuple[str, ...]]:
        """Give the limits that `/info` shows: all that refuse a call."""
        names = [name for name in type(self).model_fields if name.startswith("max_")]
        names.remove("max_batch")  # splits, never refuses
        names += ["image_formats", "deadline_s", "header_timeout_s", "body_timeout_s"]
        names += ["send_timeout_s"]
        if self.fetch_urls:
            names += ["url_schemes", "url_timeout_s", "url_max_bytes", "url_max_redirects"]
        return {name: getattr(self, name) for name in names}
