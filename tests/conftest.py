from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from esvit.backbones import (
    BackboneConfig,
    CvTConfig,
    ResNetConfig,
    Swin,
    SwinConfig,
    ViLConfig,
    ViTConfig,
    build,
    linear,
)
from esvit.native import library

# How fast examples are made says how busy the machine is, not whether the code is right.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

TINY = SwinConfig(dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), drop_path=0.0)
TINY_VIT = ViTConfig(dim=12, depth=4, num_heads=2, image_size=64, drop_path=0.0)
TINY_CVT = CvTConfig(dims=(4, 8), depths=(1, 2), num_heads=(1, 2), drop_path=0.0)
TINY_VIL = ViLConfig(
    dims=(4, 8, 12),
    depths=(1, 1, 1),
    num_heads=(1, 2, 2),
    patches=(4, 2, 2),
    num_class_tokens=(1, 1, 0),
    windows=(3, 3, 0),
    image_size=64,
    drop_path=0.0,
)
TINY_RESNET = ResNetConfig(depths=(1, 1, 1, 1), width=2)

TINIES: dict[str, BackboneConfig] = {
    "swin": TINY,
    "vit": TINY_VIT,
    "cvt": TINY_CVT,
    "vil": TINY_VIL,
    "resnet": TINY_RESNET,
}
"""The smallest network of each kind."""


@pytest.fixture(params=[False, True], ids=["mkl", "onednn"])
def each_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply in float32 by the library of one make of processor, then of the others."""
    monkeypatch.setattr(linear, "_is_not_for_mkl", lambda: request.param)


@pytest.fixture(params=["tiles", "vectors"])
def our_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Work by our kernels as this processor has them, then by those of one without tiles."""
    yield from _kernels(request.param, monkeypatch)


@pytest.fixture(params=["tiles", "vectors", "none"])
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same, then work by torch's operators."""
    yield from _kernels(request.param, monkeypatch)


def _kernels(form: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if form == "none":
        monkeypatch.setenv(library.SETTING, "off")
    if form == "vectors":
        monkeypatch.setattr(library, "has_amx", lambda: False)
    forget_library()
    if form != "none" and library.load() is None:
        pytest.skip("no compiler for C++, or no processor with AVX-512")
    yield form
    forget_library()


def forget_library() -> None:
    """Look for the kernels anew."""
    library._loaded.cache_clear()
    library.kernel.cache_clear()


@pytest.fixture
def reference() -> Path:
    return Path(__file__).parent / "reference"


@pytest.fixture
def tiny_backbone() -> Swin:
    torch.manual_seed(0)
    return build(TINY).eval()


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of a tiny trained Swin: 224 px, 32 features, 7 x 7 regions, 4 heads."""
    from trainer import export_onnx  # slow to import, and only this fixture needs it

    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    checkpoint = Path(__file__).parent / "reference" / "checkpoint_tiny.pth"
    assert export_onnx.main(["--checkpoint", str(checkpoint), "--out", str(path)]) == 0
    return path
