import subprocess
import sys

import pytest
import torch

from esvit.backbones import vision


def in_fresh_interpreter(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


def test_torchvision_imports_after_vision_in_a_fresh_interpreter():
    run = in_fresh_interpreter(
        "import esvit.backbones.vision, torchvision\n"
        "from torchvision.transforms.v2 import functional\n"
        "print(torchvision.models.resnet50(weights=None).fc.in_features)"
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "2048"


@pytest.mark.slow
@pytest.mark.skipif(vision.HAS_OPERATORS, reason="torchvision is complete here")
def test_without_vision_the_import_fails_here():
    run = in_fresh_interpreter("import torchvision")
    assert "operator torchvision::nms does not exist" in run.stderr


@pytest.mark.skipif(vision.HAS_OPERATORS, reason="torchvision is complete here")
def test_a_declared_operator_has_no_kernel():
    with pytest.raises(NotImplementedError, match="torchvision::nms"):
        torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


@pytest.mark.skipif(not vision.HAS_OPERATORS, reason="torchvision's operators cannot load here")
def test_a_complete_torchvision_keeps_its_kernels():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert torch.ops.torchvision.nms(boxes, torch.ones(1), 0.5).tolist() == [0]


def test_colour_and_resize_functions_work():
    from torchvision.transforms.v2 import functional

    pixels = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    resized = functional.resize(
        pixels, [16, 16], functional.InterpolationMode.BICUBIC, antialias=True
    )
    assert resized.shape == (3, 16, 16)
    assert functional.adjust_hue(resized, 0.1).dtype == torch.uint8
    assert functional.adjust_contrast(resized, 1.2).shape == (3, 16, 16)
