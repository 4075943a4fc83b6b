"""Backbones, one file each, all meeting the contract in `features`."""

from esvit.backbones.features import AllOutputs, Features
from esvit.backbones.swin import Swin
from esvit.config import BackboneConfig

__all__ = ["AllOutputs", "Features", "Swin", "build"]


def build(config: BackboneConfig) -> Swin:
    """Make the backbone that a config describes, freshly initialised."""
    return Swin(config)
