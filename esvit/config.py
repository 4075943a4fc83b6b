"""Every number that defines a network: backbones by name, and the projection heads.

Plain data without torch, so that a reader sees what a name stands for and a command line can be
made from it. Rows of `BACKBONES` are the published configurations, as listed in the model zoo of
the EsViT repository, and `swin_nano_w7`, which is ours and small enough for two cores.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A Swin transformer (Liu et al. 2021, section 3) as EsViT builds it.

    Attributes:
        dim: Channels C of the first stage; each later stage has twice as many.
        depths: Number of blocks of each stage.
        num_heads: Number of attention heads of each stage.
        window: Side M of an attention window, in map positions.
        patch: Side of an input patch in pixels.
        mlp_ratio: Hidden width of a block's MLP over its channels.
        drop_path: Stochastic depth of the last block, in [0, 1); the rate grows linearly from 0
            at the first one. A teacher is built with 0.
        image_size: Side in pixels for which windows are laid out: a stage whose map is then no
            larger than a window gets one window of the map's size and no shift. Images of any
            other size are accepted all the same.
        mask_padding: Whether attention ignores the positions that only fill up a window. The
            published networks attend to them, which changes every 96 px view; off by default.
    """

    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    patch: int = 4
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    image_size: int = 224
    mask_padding: bool = False

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads) or min(self.depths, default=0) < 1:
            raise ValueError(
                f"depths are {self.depths} and num_heads {self.num_heads}, "
                "expected as many of one as of the other, each at least 1"
            )
        for dim, num_heads in zip(self.stage_dims, self.num_heads, strict=True):
            if num_heads < 1 or dim < 1 or dim % num_heads:
                raise ValueError(f"{dim} channels do not divide among {num_heads} heads")
        if min(self.window, self.patch) < 1:
            raise ValueError(f"window is {self.window}, patch {self.patch}, expected at least 1")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path is {self.drop_path}, expected [0, 1)")
        smallest = self.patch << (len(self.depths) - 1)
        if self.image_size < smallest:
            raise ValueError(f"image_size is {self.image_size}, expected at least {smallest}")

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.dim << stage for stage in range(len(self.depths)))

    @property
    def stage_sides(self) -> tuple[int, ...]:
        """Side of each stage's map at `image_size`."""
        return tuple((self.image_size // self.patch) >> stage for stage in range(len(self.depths)))


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


_SMALL = BackboneConfig(depths=(2, 2, 18, 2), drop_path=0.2)
_BASE = BackboneConfig(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path=0.2)
_LARGE = BackboneConfig(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), drop_path=0.2)

BACKBONES: dict[str, BackboneConfig] = {
    "swin_nano_w7": BackboneConfig(
        dim=32, depths=(2, 2, 2, 1), num_heads=(2, 4, 8, 16), drop_path=0.0
    ),
    "swin_tiny_w7": BackboneConfig(),
    "swin_tiny_w14": BackboneConfig(window=14),
    "swin_small_w7": _SMALL,
    "swin_small_w14": replace(_SMALL, window=14),
    "swin_base_w7": _BASE,
    "swin_base_w14": replace(_BASE, window=14),
    "swin_large_w7": _LARGE,
    "swin_large_w14": replace(_LARGE, window=14),
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
        if replace(config, drop_path=row.drop_path) == row:
            return name
    return None
