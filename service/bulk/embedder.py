"""One batch of image files in, one batch of columns out: all that any batch engine needs.

    embedder = BatchEmbedder(Wanted(model="models/swin_tiny.onnx"))
    columns = embedder({"path": paths, "bytes": files})

It is what the service does without the HTTP: the same decoding, batching and engine, so a picture
has the vector here that it has there. It may be called by several threads, and should be: then the
engine never waits for the caller.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from anyio.from_thread import start_blocking_portal
from numpy.typing import NDArray

from service.command_line import make_settings
from service.contract import Output
from service.encoding import normalize
from service.engine import load_engine
from service.metrics import Metrics
from service.model_file import read_model_info
from service.pipeline import Pipeline
from service.preprocess import Fit
from service.settings import Settings
from service.tickets import Inferred, Result

Columns = dict[str, NDArray[Any]]
"""Column name to an array with a row for each picture."""

PATIENT: dict[str, Any] = {"deadline_s": 1e6, "max_queue_images": 1_000_000}
"""Limits of a service that make no sense where the only caller is ourselves."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of every picture.

    Attributes:
        model: The model file; None takes `ESVIT_MODEL` or the one that comes along.
        output: "embedding" or "last_blocks".
        fit: What of the picture the model sees.
        regions: Whether the region features are wanted too.
    """

    model: str | None = None
    output: Output = "embedding"
    fit: Fit = "crop"
    regions: bool = False

    def settings(self) -> Settings:
        """Give the service's settings: `ESVIT_` variables choose engine, device, precision."""
        model = {} if self.model is None else {"model": self.model}
        return make_settings(**PATIENT | model)

    @property
    def outputs(self) -> list[Output]:
        """What the engine is asked for."""
        return [self.output, "regions"] if self.regions else [self.output]


class BatchEmbedder:
    """The model in its engine, with decoders round it."""

    def __init__(self, wanted: Wanted) -> None:
        """Load the model.

        Raises:
            ModelError: if it cannot be used.
        """
        settings = wanted.settings()
        self.info = read_model_info(settings.model)
        self.engine = load_engine(settings, self.info)
        self._wanted = wanted
        self._pipeline = Pipeline(settings, self.info, self.engine, Metrics())
        self._portal_context = start_blocking_portal()
        self._portal = self._portal_context.__enter__()
        self._portal.call(self._pipeline.start)

    def __call__(self, batch: Mapping[str, Any]) -> Columns:
        """Embed a batch.

        Args:
            batch: Columns `path` (text) and `bytes` (image files), N rows; others are ignored.

        Returns:
            N rows of `path`, `embedding` (C,) float32, `width` and `height` of the upright
            picture, `sha256` of the file, `error` and `message`; `regions` (L, C) float16 if
            wanted. Vectors are L2-normalised. Where `error` is not empty the picture could not be
            read, and its numbers are NaN or 0.

        Raises:
            RuntimeError: if the engine fails.
        """
        files = [bytes(file) for file in batch["bytes"]]
        ask = partial(self._pipeline.infer, files, self._wanted.outputs, self._wanted.fit)
        results = self._portal.call(ask)
        return {
            "path": np.asarray(batch["path"], object),
            "sha256": np.array([hashlib.sha256(file).hexdigest() for file in files], object),
            **self._columns(results),
        }

    def close(self) -> None:
        """End the threads."""
        self._portal.call(self._pipeline.retire)
        self._portal_context.__exit__(None, None, None)

    def _columns(self, results: list[Result]) -> Columns:
        """Turn results into columns."""
        output, shapes = self._wanted.output, self.info.outputs
        count = len(results)
        columns: Columns = {
            "embedding": np.full((count, *shapes[output]), np.nan, np.float32),
            "width": np.zeros(count, np.int32),
            "height": np.zeros(count, np.int32),
            "error": np.full(count, "", object),
            "message": np.full(count, "", object),
        }
        if self._wanted.regions:
            columns["regions"] = np.full((count, *shapes["regions"]), np.nan, np.float16)
        for row, result in enumerate(results):
            if not isinstance(result, Inferred):
                if result.status >= 500:  # our own fault: no picture may be written off for it
                    raise RuntimeError(f"the engine failed: {result.message}; the log says why")
                columns["error"][row], columns["message"][row] = result.code, result.message
                continue
            geometry = result.prepared.geometry
            columns["width"][row], columns["height"][row] = geometry.width, geometry.height
            columns["embedding"][row] = result.unit[output]
            if self._wanted.regions:
                columns["regions"][row] = normalize(result.arrays["regions"])
        return columns
