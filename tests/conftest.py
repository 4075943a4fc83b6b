from pathlib import Path

import pytest
import torch

from esvit.backbones import Swin, build
from esvit.config import BackboneConfig

TINY = BackboneConfig(dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), drop_path=0.0)


@pytest.fixture
def reference() -> Path:
    return Path(__file__).parent / "reference"


@pytest.fixture
def tiny_backbone() -> Swin:
    torch.manual_seed(0)
    return build(TINY).eval()
