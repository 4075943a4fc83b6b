"""Backbones, one file each, all meeting the contract in `contract`."""

from esvit.backbones.contract import AllOutputs, Backbone, Features
from esvit.backbones.cvt import CvT
from esvit.backbones.cvt_config import CvTConfig
from esvit.backbones.resnet import ResNet, ResNetConfig
from esvit.backbones.swin import Swin
from esvit.backbones.swin_config import SwinConfig
from esvit.backbones.vil import ViL
from esvit.backbones.vil_config import ViLConfig
from esvit.backbones.vit import ViT, ViTConfig

__all__ = [
    "KINDS",
    "AllOutputs",
    "Backbone",
    "BackboneConfig",
    "CvT",
    "CvTConfig",
    "Features",
    "ResNet",
    "ResNetConfig",
    "Swin",
    "SwinConfig",
    "ViL",
    "ViLConfig",
    "ViT",
    "ViTConfig",
    "build",
]

BackboneConfig = SwinConfig | ViTConfig | CvTConfig | ViLConfig | ResNetConfig
"""Any backbone's config."""

KINDS: dict[str, type[BackboneConfig]] = {
    kind.kind: kind for kind in (SwinConfig, ViTConfig, CvTConfig, ViLConfig, ResNetConfig)
}
"""What files of weights call each kind of config."""


def build(config: BackboneConfig) -> Backbone:
    """Make the backbone that a config describes, freshly initialised."""
    match config:
        case SwinConfig():
            return Swin(config)
        case ViTConfig():
            return ViT(config)
        case CvTConfig():
            return CvT(config)
        case ViLConfig():
            return ViL(config)
        case ResNetConfig():
            return ResNet(config)
