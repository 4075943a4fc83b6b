import pytest
import torch

from esvit.backbones import SwinConfig, build
from esvit.config import BACKBONES, HeadConfig, backbone_config

PUBLISHED = {  # parameters without heads, tensors in the state dict
    "swin_tiny_w7": (27_519_354, 183),
    "swin_tiny_w14": (27_569_754, 183),
    "swin_small_w7": (48_837_258, 351),
    "swin_small_w14": (48_968_298, 351),
    "swin_base_w7": (86_743_224, 351),
    "swin_base_w14": (86_917_944, 351),
    "swin_large_w7": (194_995_476, 351),
    "deit_tiny_p16": (5_524_416, 150),
    "deit_small_p16": (21_665_664, 150),
    "vit_base_p16": (85_798_656, 150),
    "cvt_tiny": (29_303_616, 234),
    "vil_2262": (27_569_352, 241),
    "resnet50": (23_508_032, 318),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_backbones_have_the_published_size(name):
    with torch.device("meta"):
        backbone = build(BACKBONES[name])
    size = sum(parameter.numel() for parameter in backbone.parameters())
    assert (size, len(backbone.state_dict())) == PUBLISHED[name]


def test_nano_fits_into_twelve_megabytes():
    backbone = build(BACKBONES["swin_nano_w8"])
    assert 4 * sum(parameter.numel() for parameter in backbone.parameters()) < 12e6


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="backbone is 'swin_huge', expected one of swin_nano_w8"):
        backbone_config("swin_huge")


def test_known_name_gives_its_row():
    assert backbone_config("swin_base_w14").window == 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (2, 2)}, r"depths are \(2, 2\)"),
        ({"depths": (0, 2, 2, 2)}, "each at least 1"),
        ({"num_heads": (5, 6, 12, 24)}, "96 channels do not divide among 5 heads"),
        ({"window": 0}, "window is 0"),
        ({"patch": 0}, "patch 0"),
        ({"drop_path": 1.0}, r"drop_path is 1.0, expected \[0, 1\)"),
        ({"image_size": 31}, "image_size is 31, expected at least 32"),
    ],
)
def test_impossible_backbone_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SwinConfig(**change)


def test_impossible_head_is_refused():
    with pytest.raises(ValueError, match="expected all at least 1"):
        HeadConfig(num_layers=0)
