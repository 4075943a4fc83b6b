"""What a name stands for: the table of backbones, and the numbers of a projection head.

Rows of `BACKBONES` are the published configurations, as listed in the model zoo of the EsViT
repository, and `swin_nano_w8`, which is ours: laid out for pictures of 64 px, small enough to be
trained on two cores.
"""

from dataclasses import dataclass, replace

from esvit.backbones import (
    BackboneConfig,
    CvTConfig,
    ResNetConfig,
    SwinConfig,
    ViLConfig,
    ViTConfig,
)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A projection head as in DINO (Caron et al. 2021, section 3.1, network architecture).

    Attributes:
        num_prototypes: Number K of outputs.
        hidden_dim: Width of the hidden layers.
        bottleneck_dim: Width of the L2-normalised layer before the prototypes.
        num_layers: Linear layers up to the bottleneck.
        use_bn: Whether a batch norm follows each hidden layer.
        norm_last_layer: Whether the prototypes keep length 1; the published Swin runs let it go.
    """

    num_prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    num_layers: int = 3
    use_bn: bool = False
    norm_last_layer: bool = True

    def __post_init__(self) -> None:
        sizes = (self.num_prototypes, self.hidden_dim, self.bottleneck_dim, self.num_layers)
        if min(sizes) < 1:
            raise ValueError(f"a head has sizes {sizes}, expected all at least 1")


_SMALL = SwinConfig(depths=(2, 2, 18, 2), drop_path=0.2)
_BASE = SwinConfig(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path=0.2)
_LARGE = SwinConfig(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), drop_path=0.2)

_VIL = (
    "l1,h3,d96,n2,s1,g1,p4,f7,a0_l2,h6,d192,n2,s1,g1,p2,f7,a0_"
    "l3,h12,d384,n6,s0,g1,p2,f7,a0_l4,h24,d768,n2,s0,g0,p2,f7,a0"
)

BACKBONES: dict[str, BackboneConfig] = {
    "swin_nano_w8": SwinConfig(
        dim=64, depths=(1, 2, 3), num_heads=(2, 4, 8), window=8, image_size=64, drop_path=0.0
    ),
    "swin_tiny_w7": SwinConfig(),
    "swin_tiny_w14": SwinConfig(window=14),
    "swin_small_w7": _SMALL,
    "swin_small_w14": replace(_SMALL, window=14),
    "swin_base_w7": _BASE,
    "swin_base_w14": replace(_BASE, window=14),
    "swin_large_w7": _LARGE,
    "swin_large_w14": replace(_LARGE, window=14),
    "deit_tiny_p16": ViTConfig(dim=192, num_heads=3),
    "deit_small_p16": ViTConfig(),
    "deit_small_p8": ViTConfig(patch=8),
    "moco_vit_small_p16": ViTConfig(num_heads=12),
    "vit_base_p16": ViTConfig(dim=768, num_heads=12),
    "vit_base_p8": ViTConfig(dim=768, num_heads=12, patch=8),
    "cvt_tiny": CvTConfig(),
    "vil_2262": ViLConfig.parse(_VIL),
    "resnet50": ResNetConfig(),
}


def backbone_config(name: str) -> BackboneConfig:
    """Look a backbone up by name.

    Raises:
        ValueError: if no backbone has this name; the message lists those there are.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone is {name!r}, expected one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def backbone_name(config: BackboneConfig) -> str | None:
    """Name the row that a config equals but for its drop path, or None."""
    for name, row in BACKBONES.items():
        if isinstance(config, type(row)) and replace(config, drop_path=row.drop_path) == row:
            return name
    return None
