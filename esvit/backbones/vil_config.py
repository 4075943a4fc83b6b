"""What defines a ViL: its numbers, the published string of them, and how tensors tell them."""

import math
import re
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import ClassVar, Literal, Self

import torch

from esvit.backbones.contract import check_drop_path
from esvit.state import State, count_numbered, tensor_of

Neighbours = Literal["all", "random", "none"]

_LETTERS = {"l": 1, "h": 3, "d": 192, "n": 1, "s": 1, "g": 1, "p": 2, "f": 7, "a": 1}
"""Letters of a stage in the published string, and what one that is left out stands for."""

_TABLE = "local_relative_position_bias_table"


@dataclass(frozen=True, kw_only=True)
class ViLConfig:
    """A Vision Longformer (Zhang et al. 2021) as EsViT builds it; tuples hold a value a stage.

    Attributes:
        dims: Channels C.
        depths: Number of blocks.
        num_heads: Number of attention heads.
        patches: Side of a patch, in positions of the stage before; in pixels for the first.
        num_class_tokens: Tokens that all positions of the stage see and that see all of them, at
            most one in the last stage. Where there are any, the first is what is pooled of a
            block, else the mean of the positions.
        windows: Side M of a chunk, in map positions, where attention slides; 0 where all positions
            see each other, as they then must in all later stages.
        neighbours: Which of its 8 neighbours a chunk sees in training, besides itself: all, one
            that is drawn anew for each block and pass, or none. Evaluation sees all but for none.
        mlp_ratio: Hidden width of a block's MLP over its channels.
        drop_path: Stochastic depth of the last block, in [0, 1); the rate grows linearly from 0
            at the first one. A teacher is built with 0.
        image_size: Side in pixels for which the offset tables of stages without chunks are laid
            out. Images of any other size are accepted all the same.
    """

    kind: ClassVar[str] = "vil"

    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    patches: tuple[int, ...] = (4, 2, 2, 2)
    num_class_tokens: tuple[int, ...] = (1, 1, 1, 0)
    windows: tuple[int, ...] = (7, 7, 0, 0)
    neighbours: Neighbours = "random"
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    image_size: int = 224

    def __post_init__(self) -> None:
        per_stage = (self.dims, self.depths, self.num_heads, self.patches)
        lengths = {len(values) for values in (*per_stage, self.num_class_tokens, self.windows)}
        if len(lengths) != 1 or not self.dims or min(map(min, per_stage)) < 1:
            raise ValueError(
                f"dims, depths, num_heads and patches are {per_stage}, num_class_tokens "
                f"{self.num_class_tokens}, windows {self.windows}, expected as many of each, "
                "the first four at least 1"
            )
        for dim, num_heads in zip(self.dims, self.num_heads, strict=True):
            if dim % num_heads:
                raise ValueError(f"{dim} channels do not divide among {num_heads} heads")
        if min(self.num_class_tokens) < 0 or self.num_class_tokens[-1] > 1:
            raise ValueError(
                f"num_class_tokens are {self.num_class_tokens}, expected at least 0, "
                "in the last stage at most 1"
            )
        slides = [window > 0 for window in self.windows]
        if min(self.windows) < 0 or slides != sorted(slides, reverse=True):
            raise ValueError(
                f"windows are {self.windows}, expected at least 0, and 0 in every stage after a 0"
            )
        if self.neighbours not in ("all", "random", "none"):
            raise ValueError(f"neighbours is {self.neighbours!r}, expected all, random or none")
        check_drop_path(self.drop_path)
        if self.image_size < self.least_side:
            raise ValueError(
                f"image_size is {self.image_size}, expected at least {self.least_side}"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from one position to the next in each stage."""
        return tuple(accumulate(self.patches, mul))

    @property
    def least_side(self) -> int:
        """Smallest side in pixels of an image: a patch of the last stage."""
        return math.prod(self.patches)

    @classmethod
    def parse(cls, arch: str) -> Self:
        """Read a published string such as `l1,h3,d96,n2,s1,g1,p4,f7,a0_l2,...`.

        Stages are joined by underscores. l numbers them, h are heads, d channels, n blocks, s
        whether attention slides, g class tokens, p the patch, f the window, a whether there are
        absolute positions; those are of no published network.

        Raises:
            ValueError: if the string is no such string, or asks for absolute positions.
        """
        stages = [_parse_stage(part) for part in arch.split("_")]
        if [stage["l"] for stage in stages] != list(range(1, len(stages) + 1)):
            raise ValueError(f"{arch!r} does not number its stages from l1 on")
        if any(stage["a"] for stage in stages):
            raise ValueError(f"{arch!r} has absolute positions, expected a0 in every stage")
        return cls(
            dims=tuple(stage["d"] for stage in stages),
            depths=tuple(stage["n"] for stage in stages),
            num_heads=tuple(stage["h"] for stage in stages),
            patches=tuple(stage["p"] for stage in stages),
            num_class_tokens=tuple(stage["g"] for stage in stages),
            windows=tuple(stage["f"] if stage["s"] else 0 for stage in stages),
        )

    @classmethod
    def recognise(cls, state: State) -> Self | None:
        """Tell a ViL from its tensors; None if they are of something else.

        Which neighbours it was trained with cannot be seen and is taken to be as published.

        Raises:
            ValueError: if a tensor that tells is missing, the tensors contradict each other, or
                class tokens have weights of their own.
        """
        if "layer1.0.proj.weight" not in state:
            return None
        num_stages = sum(f"layer{n}.0.proj.weight" in state for n in range(1, 10))
        names = [f"layer{number}." for number in range(1, num_stages + 1)]
        projections = [tensor_of(state, f"{name}0.proj.weight", 4) for name in names]
        _refuse_own_weights(state)
        windows = tuple(_window(state, name) for name in names)
        patches = tuple(x.shape[-1] for x in projections)
        hidden_dim = tensor_of(state, "layer1.2.mlp.fc1.weight", 2).shape[0]
        return cls(
            dims=tuple(x.shape[0] for x in projections),
            depths=tuple(count_numbered(state, name) // 2 for name in names),
            num_heads=tuple(tensor_of(state, f"{n}1.attn.{_TABLE}", 2).shape[1] for n in names),
            patches=patches,
            num_class_tokens=tuple(_num_class_tokens(state, name) for name in names),
            windows=windows,
            mlp_ratio=hidden_dim / projections[0].shape[0],
            drop_path=0.0,
            image_size=_image_size(state, windows, tuple(accumulate(patches, mul))),
        )


def _parse_stage(part: str) -> dict[str, int]:
    """Read the letters of one stage."""
    letters = dict(_LETTERS)
    for word in part.split(","):
        found = re.fullmatch(r"([a-z])(\d+)", word)
        if found is None or found[1] not in letters:
            raise ValueError(f"{word!r} is not one of {', '.join(_LETTERS)} and a number")
        letters[found[1]] = int(found[2])
    return letters


def _window(state: State, name: str) -> int:
    """Tell a stage's window from its table of (4 M - 1)^2 offsets; 0 where nothing slides."""
    if f"{name}1.attn.query.weight" not in state:
        return 0
    return (math.isqrt(tensor_of(state, f"{name}1.attn.{_TABLE}", 2).shape[0]) + 1) // 4


def _num_class_tokens(state: State, name: str) -> int:
    """Count a stage's class tokens."""
    key = f"{name}0.cls_token"
    return tensor_of(state, key, 3).shape[1] if key in state else 0


def _image_size(state: State, windows: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Tell the image size from the table of (2 side - 1)^2 offsets of a stage without chunks."""
    if all(windows):
        return ViLConfig.image_size
    stage = windows.index(0)
    num_offsets = tensor_of(state, f"layer{stage + 1}.1.attn.{_TABLE}", 2).shape[0]
    return (math.isqrt(num_offsets) + 1) // 2 * strides[stage]


def _refuse_own_weights(state: State) -> None:
    """Refuse class tokens with weights of their own: here, as published, they share those."""
    for key, x in state.items():
        shared = state.get(re.sub(r"_global\.(weight|bias)$", r".\1", key), x)
        is_known = not x.is_meta and x.shape == shared.shape
        if is_known and not torch.equal(x, shared):
            raise ValueError(f"tensor {key} differs from the one it should share weights with")
