"""What network a set of tensors belongs to, told from their names and shapes alone.

Published checkpoints hold no config that could be relied on, so the tensors have to say it.
"""

import re

from esvit.backbones import KINDS, BackboneConfig
from esvit.config import BACKBONES, HeadConfig, backbone_name
from esvit.state import State, tensor_of


def recognise_backbone(state: State) -> BackboneConfig:
    """Tell a backbone's config from its tensors.

    The drop path cannot be seen: it is that of the row of `BACKBONES`, or 0 where there is none.

    Args:
        state: Tensors under their bare names; those of heads are not looked at.

    Raises:
        ValueError: if a tensor that tells is missing, or the tensors contradict each other.
    """
    for kind in KINDS.values():
        config = kind.recognise(state)
        if config is not None:
            name = backbone_name(config)
            return config if name is None else BACKBONES[name]
    raise ValueError(f"tensors of none of the backbones {', '.join(KINDS)}")


def recognise_head(state: State, prefix: str) -> HeadConfig | None:
    """Tell a head's config from its tensors under a prefix such as `head.`; None without any.

    Raises:
        ValueError: if a tensor that tells is missing.
    """
    if not any(key.startswith(prefix) for key in state):
        return None
    prototypes = tensor_of(state, prefix + "last_layer.weight_v", 2)
    gains = tensor_of(state, prefix + "last_layer.weight_g", 2)
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
