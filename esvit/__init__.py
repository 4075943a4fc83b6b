"""EsViT: the method. Torch only; no data sets, no command line, no printing."""

from esvit.backbones import AllOutputs, Backbone, BackboneConfig, Features, Swin, SwinConfig, build
from esvit.config import BACKBONES, HeadConfig, backbone_config, backbone_name
from esvit.head import ProjectionHead
from esvit.model import EsViT, Logits, Projections, ViewFeatures
from esvit.weights import Weights, digest, read_weights, write_safetensors

__all__ = [
    "BACKBONES",
    "AllOutputs",
    "Backbone",
    "BackboneConfig",
    "EsViT",
    "Features",
    "HeadConfig",
    "Logits",
    "ProjectionHead",
    "Projections",
    "Swin",
    "SwinConfig",
    "ViewFeatures",
    "Weights",
    "backbone_config",
    "backbone_name",
    "build",
    "digest",
    "read_weights",
    "write_safetensors",
]
