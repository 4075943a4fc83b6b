"""Makes `import torchvision` work beside a torch that its compiled operators were not built for.

The package index's torchvision carries operators compiled against the CUDA build of torch. Beside a
CPU-only torch of the same version they cannot be loaded, torchvision goes on without them, and then
its import fails all the same: it attaches shape functions to `torchvision::nms` and
`torchvision::qnms`, which nobody has declared. Transforms and classification models are plain
Python and use no compiled operator, so declaring these two schemas is all that they need. Calling a
declared operator still fails, as it must: there is no kernel behind it.

Write `from esvit.backbones.vision import torchvision`. Where torchvision is complete
(a CUDA machine, a CPU wheel, its own build) nothing is declared.
"""

import importlib.util
from pathlib import Path

import torch

__all__ = ["HAS_OPERATORS", "torchvision"]

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""The operators that torchvision's import refers to, as its compiled part declares them."""


def _load_operators() -> bool:
    """Load torchvision's compiled operators, as its own import would; say whether that worked."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("torchvision is missing: pip install 'esvit[train]'")
    for folder in spec.submodule_search_locations:
        for library in sorted([*Path(folder).glob("_C*.so"), *Path(folder).glob("_C*.pyd")]):
            try:
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]  # torch has no hints here
            except (ImportError, OSError):  # built for another torch
                continue
            return True
    return False


def _declare_operators() -> torch.library.Library:
    """Declare the schemas; they live as long as the returned library."""
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # as above
    for schema in SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]  # as above
    return library


HAS_OPERATORS = _load_operators()
"""Whether compiled operators (nms, roi_align, ...) can be called in this process."""

_declared = None if HAS_OPERATORS else _declare_operators()

import torchvision  # type: ignore[import-untyped]  # noqa: E402  # it has no hints
import torchvision.transforms.v2  # type: ignore[import-untyped]  # noqa: E402
