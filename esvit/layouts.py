"""How published files are laid out: from all that one holds to a network under its bare names.

- EsViT: `student` and `teacher`, the student always and networks with batch norms both behind
  `module.`; ResNet's backbone behind a doubled `backbone.`.
- DINO: `student` and `teacher` likewise, backbones behind one `backbone.`; or a backbone alone.
- MoCo-v3: `state_dict` with `base_encoder` and `momentum_encoder`, which are student and teacher.
  Their heads are of another kind than ours and left out.
- Supervised: a network alone, or under `model`; its classifier is left out.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

Network = Literal["teacher", "student"]

MOCO_HEADS = 12
"""Attention heads of MoCo-v3's ViTs, S and B, which its tensors do not tell."""

_MOCO = {"student": "base_encoder.", "teacher": "momentum_encoder."}
_MOCO_HEADS = ("head.", "fc.")
_CLASSIFIER = ("head.weight", "head.bias", "fc.weight", "fc.bias")


class Found(NamedTuple):
    """A network of a file.

    Attributes:
        state: What it holds, under bare names.
        num_heads: Attention heads, where the layout tells and tensors do not.
    """

    state: dict[str, Any]  # whatever the file holds
    num_heads: int | None = None


def find_network(content: Any, network: Network) -> Found:  # whatever the file holds
    """Find a network in a file's content, whichever layout it has.

    Args:
        content: As unpickled.
        network: Which one, where there are two.

    Raises:
        ValueError: if there is none.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"no network {network!r} in it")
    if isinstance(content.get("state_dict"), Mapping):
        return Found(_of_moco(content["state_dict"], network), MOCO_HEADS)
    is_alone = all(isinstance(x, Tensor) for x in content.values())
    tensors = content if is_alone else content.get(network, content.get("model"))
    if not isinstance(tensors, Mapping):
        raise ValueError(f"no network {network!r} in it")
    return Found({key: x for key, x in _bare(tensors).items() if key not in _CLASSIFIER})


def _of_moco(tensors: Mapping[Any, Any], network: Network) -> dict[str, Any]:
    """Give MoCo-v3's encoder that stands for a network, without its head."""
    prefix = _MOCO[network]
    behind = (
        (key.removeprefix(prefix), x) for key, x in _bare(tensors).items() if key.startswith(prefix)
    )
    state = {key: x for key, x in behind if not key.startswith(_MOCO_HEADS)}
    if not state:
        raise ValueError(f"no network {network!r} in it: nothing behind {prefix}")
    return state


def _bare(tensors: Mapping[Any, Any]) -> dict[str, Any]:
    """Take off what wrappers have put before the names."""
    bare = {str(key).removeprefix("module."): x for key, x in tensors.items()}
    for _ in range(2):
        bare = {key.removeprefix("backbone."): x for key, x in bare.items()}
    return bare
