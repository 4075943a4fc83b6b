"""Backbones, one file each, all meeting the contract in `contract`."""

from esvit.backbones.contract import AllOutputs, Backbone, Features
from esvit.backbones.swin import Swin
from esvit.backbones.swin_config import SwinConfig

__all__ = [
    "KINDS",
    "AllOutputs",
    "Backbone",
    "BackboneConfig",
    "Features",
    "Swin",
    "SwinConfig",
    "build",
]

BackboneConfig = SwinConfig
"""Any backbone's config."""

KINDS: dict[str, type[BackboneConfig]] = {kind.kind: kind for kind in (SwinConfig,)}
"""What files of weights call each kind of config."""


def build(config: BackboneConfig) -> Backbone:
    """Make the backbone that a config describes, freshly initialised."""
    match config:
        case SwinConfig():
            return Swin(config)
