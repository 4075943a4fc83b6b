"""What network a set of tensors belongs to, told from their names and shapes alone.

Published checkpoints hold no config that could be relied on, so the tensors have to say it.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from esvit.config import BACKBONES, BackboneConfig, HeadConfig, backbone_name

State = Mapping[str, Tensor]

_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")


def recognise_backbone(state: State) -> BackboneConfig:
    """Tell a Swin config from its tensors.

    The drop path cannot be seen: it is that of the row of `BACKBONES`, or 0 where there is none.

    Args:
        state: Tensors under their bare names; those of heads are not looked at.

    Raises:
        ValueError: if a tensor that tells is missing, or the tensors contradict each other.
    """
    last_block: dict[int, int] = {}
    for key in state:
        if found := _BLOCK.match(key):
            stage, block = int(found[1]), int(found[2])
            last_block[stage] = max(block, last_block.get(stage, 0))
    num_stages = max(last_block, default=-1) + 1
    if not num_stages or len(last_block) != num_stages:
        raise ValueError(f"not a Swin: has blocks of stages {sorted(last_block)}")
    tables = [
        _tensor(state, f"layers.{stage}.blocks.0.attn.relative_position_bias_table", 2)
        for stage in range(num_stages)
    ]
    patches = _tensor(state, "patch_embed.proj.weight", 4)
    hidden_dim = _tensor(state, "layers.0.blocks.0.mlp.fc1.weight", 2).shape[0]
    sides = [(round(table.shape[0] ** 0.5) + 1) // 2 for table in tables]
    config = BackboneConfig(
        dim=patches.shape[0],
        depths=tuple(last_block[stage] + 1 for stage in range(num_stages)),
        num_heads=tuple(table.shape[1] for table in tables),
        window=max(sides),
        patch=patches.shape[-1],
        mlp_ratio=hidden_dim / patches.shape[0],
        drop_path=0.0,
        image_size=_image_size(sides, patches.shape[-1]),
    )
    name = backbone_name(config)
    return config if name is None else BACKBONES[name]


def recognise_head(state: State, prefix: str) -> HeadConfig | None:
    """Tell a head's config from its tensors under a prefix such as `head.`; None without any.

    Raises:
        ValueError: if a tensor that tells is missing.
    """
    if not any(key.startswith(prefix) for key in state):
        return None
    prototypes = _tensor(state, prefix + "last_layer.weight_v", 2)
    gains = _tensor(state, prefix + "last_layer.weight_g", 2)
    linear = re.compile(re.escape(prefix) + r"mlp\.(?:\d+\.)?weight")
    widths = [x.shape[0] for key, x in state.items() if linear.fullmatch(key) and x.dim() == 2]
    return HeadConfig(
        num_prototypes=prototypes.shape[0],
        bottleneck_dim=prototypes.shape[1],
        hidden_dim=widths[0] if len(widths) > 1 else HeadConfig.hidden_dim,
        num_layers=len(widths),
        use_bn=any(key.startswith(prefix) and key.endswith("running_mean") for key in state),
        norm_last_layer=bool((gains == 1).all()),
    )


def _tensor(state: State, key: str, dim: int) -> Tensor:
    """Look a tensor up that must be there."""
    if key not in state:
        raise ValueError(f"no tensor {key}")
    if state[key].dim() != dim:
        raise ValueError(f"tensor {key} has shape {tuple(state[key].shape)}, expected {dim} axes")
    return state[key]


def _image_size(sides: list[int], patch: int) -> int:
    """Find the image size that windows of these sides were laid out for.

    Only a stage whose map is smaller than a window tells. Without one, 224 px as published is
    taken, or the smallest size that gives every stage a whole window.
    """
    telling = [patch * side << stage for stage, side in enumerate(sides) if side < max(sides)]
    if telling:
        return telling[0]
    return max(BackboneConfig.image_size, patch * max(sides) << (len(sides) - 1))
