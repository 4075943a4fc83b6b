"""Weights in and out: published checkpoints, and our own safetensors.

A published checkpoint is a pickle. It is read by torch's restricted unpickler, with the few
harmless types that such files contain allowed for the time of the call; a file that asks for
anything else is refused without running it. Own files hold tensors and, as JSON in the metadata,
their configs.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from esvit.backbones import KINDS, Backbone, BackboneConfig, SwinConfig, ViTConfig, build
from esvit.config import HeadConfig
from esvit.files import replacing
from esvit.head import ProjectionHead
from esvit.layouts import Network as Network  # part of what readers are asked
from esvit.layouts import find_network
from esvit.model import HEADS, EsViT
from esvit.recognise import recognise_backbone, recognise_head
from esvit.state import State

_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]  # what pickles call it by
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
    type(np.dtype(np.int64)),
]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of one network, and what they are tensors of.

    Attributes:
        state: Tensors under the published names, on the CPU.
        backbone: The backbone they fit.
        head: The view head they hold, if any.
        head_dense: The region head they hold, if any.
        about: Where they are from; values that JSON can hold.
    """

    state: State
    backbone: BackboneConfig
    head: HeadConfig | None = None
    head_dense: HeadConfig | None = None
    about: Mapping[str, Any]  # JSON values

    def build_backbone(self) -> Backbone:
        """Make the backbone with its weights, heads left out, in evaluation mode."""
        backbone = build(self.backbone)
        backbone.load_state_dict(
            {key: x for key, x in self.state.items() if not key.startswith(HEADS)}
        )
        return backbone.eval()

    def build_model(self) -> EsViT:
        """Make backbone and heads with their weights, in evaluation mode.

        Raises:
            ValueError: if there is no view head.
        """
        if self.head is None:
            raise ValueError("the weights hold no view head (head.*)")
        backbone = build(self.backbone)
        dense = self.head_dense
        region_head = None if dense is None else ProjectionHead(backbone.dim, dense)
        model = EsViT(backbone, ProjectionHead(backbone.dim, self.head), region_head)
        model.load_state_dict(self.state)
        return model.eval()


def read_weights(
    path: Path, network: Network = "teacher", backbone: BackboneConfig | None = None
) -> Weights:
    """Read either kind of file: our own if it ends in .safetensors, else a published checkpoint.

    Args:
        path: File to read.
        network: Which network of a published checkpoint; our own files hold one.
        backbone: What a published checkpoint holds, where its tensors do not tell; our own files
            say what they hold.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut, foreign or unsafe, or a tensor is missing or unexpected.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return read_checkpoint(path, network, backbone)


def read_checkpoint(
    path: Path, network: Network = "teacher", backbone: BackboneConfig | None = None
) -> Weights:
    """Read one network of a published checkpoint; raises as `read_weights`."""
    content = _unpickle(path)
    with _naming(path):
        state, num_heads = find_network(content, network)
        if not all(isinstance(x, Tensor) for x in state.values()):
            raise ValueError(f"network {network!r} holds things that are no tensors")
        config = recognise_backbone(state) if backbone is None else backbone
        if isinstance(config, ViTConfig) and num_heads is not None:
            config = replace(config, num_heads=num_heads)
        weights = Weights(
            state=state,
            backbone=replace(config, drop_path=0.0) if network == "teacher" else config,
            head=recognise_head(state, "head."),
            head_dense=recognise_head(state, "head_dense."),
            about={"file": path.name, "network": network, "epoch": _whole(content.get("epoch"))},
        )
        _check_fit(weights)
    return weights


def _whole(number: object) -> int | None:
    """Give a whole number as JSON has it, whatever class holds it; None if it is none."""
    if isinstance(number, Tensor) and number.numel() == 1:
        number = number.item()
    return int(number) if isinstance(number, int | np.integer) else None


def read_centers(path: Path) -> dict[str, Tensor]:
    """Read the loss's centers of a published checkpoint, by name; files of ours hold none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut or unsafe.
    """
    if path.suffix == ".safetensors":
        return {}
    content = _unpickle(path)
    loss = content.get("dino_loss") if isinstance(content, dict) else None
    named = loss.items() if isinstance(loss, dict) else ()
    return {str(key): x for key, x in named if isinstance(x, Tensor)}


def read_safetensors(path: Path) -> Weights:
    """Read what `write_safetensors` wrote; raises as `read_weights`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    path.open("rb").close()  # the system says why it cannot; safetensors calls it missing
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {})["esvit"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
        weights = Weights(
            state=state,
            backbone=_backbone_config(fields["backbone"]),
            head=_head_config(fields["head"]),
            head_dense=_head_config(fields["head_dense"]),
            about=fields["about"],
        )
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not weights of ours: {_first_line(error)}") from error
    with _naming(path):
        _check_fit(weights)
    return weights


def write_safetensors(path: Path, weights: Weights) -> None:
    """Write weights; raises OSError, and leaves what was there, if the disk does not take them."""
    fields = asdict(replace(weights, state={})) | {"about": dict(weights.about)}
    del fields["state"]
    fields["backbone"]["kind"] = weights.backbone.kind
    # Names may share a tensor, as class tokens and positions do in a ViL; in the file none may.
    state = {key: x.detach().cpu().contiguous().clone() for key, x in weights.state.items()}
    with replacing(path) as temporary:
        save_file(state, temporary, {"esvit": json.dumps(fields, sort_keys=True)})


def digest(state: State) -> str:
    """SHA-256 over names, types, shapes and values of tensors, whatever their order."""
    sha = hashlib.sha256()
    for key in sorted(state):
        x = state[key].detach().cpu().contiguous()
        sha.update(f"{key} {x.dtype} {tuple(x.shape)}\n".encode())
        sha.update(x.view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _unpickle(path: Path) -> Any:  # whatever the file holds
    """Unpickle tensors and harmless types, nothing else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # an unpickler of other people's bytes raises all there is
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(f"{path}: refused, it would run {found[1]}") from error
        # What torch says of a file that is no pickle at all is advice to read it unsafely.
        is_pickle = isinstance(error, RuntimeError | EOFError | ValueError)
        reason = _first_line(error) if is_pickle else "no pickle"
        raise ValueError(f"{path}: not a readable checkpoint: {reason}") from error


def _check_fit(weights: Weights) -> None:
    """Refuse tensors that are not exactly those of the networks they are said to be of."""
    expected = _expected(weights)
    if missing := expected.keys() - weights.state.keys():
        raise ValueError(f"no tensor {min(missing)}")
    if unexpected := weights.state.keys() - expected.keys():
        raise ValueError(f"unexpected tensor {min(unexpected)}")
    for key, x in expected.items():
        actual, wanted = tuple(weights.state[key].shape), tuple(x.shape)
        if actual != wanted:
            raise ValueError(f"tensor {key} has shape {actual}, expected {wanted}")


def _expected(weights: Weights) -> dict[str, Tensor]:
    """Name the tensors of the networks, without values."""
    with torch.device("meta"):
        backbone = build(weights.backbone)
        state: dict[str, Tensor] = dict(backbone.state_dict())
        for prefix, config in (("head.", weights.head), ("head_dense.", weights.head_dense)):
            if config is not None:
                head = ProjectionHead(backbone.dim, config).state_dict()
                state |= {prefix + key: x for key, x in head.items()}
    return state


def _backbone_config(fields: Mapping[str, Any]) -> BackboneConfig:  # JSON values
    """Make a config of its JSON, whose lists were tuples; a Swin if it is too old to say."""
    plain: dict[str, Any] = {k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()}
    return KINDS[plain.pop("kind", SwinConfig.kind)](**plain)


def _head_config(fields: Mapping[str, Any] | None) -> HeadConfig | None:  # JSON values
    """Make a config of its JSON, if there is one."""
    return None if fields is None else HeadConfig(**fields)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before the message of an error."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _first_line(error: Exception) -> str:
    """Shorten an error to one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
