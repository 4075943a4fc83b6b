"""ResNet, the convolutional backbone that EsViT is compared with, as torchvision builds it.

It has no attention: regions are the positions of the last stage's map, and their mean is pooled.

Shape letters: B batch, H W height and width of a map, C channels, L = H * W regions of the last
map, D channels of several blocks side by side.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from esvit.backbones.contract import AllOutputs, Backbone, Features, checked_images
from esvit.state import State, count_numbered, tensor_of

_PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_STAGES = _PARTS[4:]


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet of bottlenecks (He et al. 2016, section 4.1).

    Attributes:
        depths: Number of bottlenecks of each of the four stages.
        width: Channels inside a bottleneck of the first stage; each later stage has twice as many.
            What leaves a stage has 256, 512, 1024 and 2048 channels whatever the width.
        drop_path: 0, for there is no stochastic depth.
        image_size: Side in pixels of the images that the published network was trained on.
    """

    kind: ClassVar[str] = "resnet"

    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    drop_path: float = 0.0
    image_size: int = 224

    def __post_init__(self) -> None:
        if len(self.depths) != len(_STAGES) or min(self.depths) < 1 or self.width < 1:
            raise ValueError(
                f"depths are {self.depths}, width {self.width}, "
                f"expected {len(_STAGES)} depths and a width, each at least 1"
            )
        if self.drop_path:
            raise ValueError(f"drop_path is {self.drop_path}, expected 0: a ResNet has none")

    @property
    def least_side(self) -> int:
        """Smallest side in pixels of an image: every layer pads."""
        return 1

    @classmethod
    def recognise(cls, state: State) -> Self | None:
        """Tell a ResNet from its tensors; None if they are of something else.

        Raises:
            ValueError: if a tensor that tells is missing.
        """
        if "layer1.0.conv1.weight" not in state:
            return None
        return cls(
            depths=tuple(count_numbered(state, f"{stage}.") for stage in _STAGES),
            width=tensor_of(state, "layer1.0.conv1.weight", 4).shape[0],
        )


class ResNet(Backbone):
    """ResNet without a classifier."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        network = _torchvision_resnet(config)
        for part in _PARTS:
            self.add_module(part, getattr(network, part))

    @property
    def dim(self) -> int:
        """Channels C of a pooled or region feature."""
        return 2048

    @property
    def num_heads(self) -> int:
        """None: there is no attention."""
        return 0

    @property
    def num_blocks(self) -> int:
        """Bottlenecks of all stages."""
        return sum(self.config.depths)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Give rows and columns of the last map: one for each 32 pixels begun."""
        return -(-height // 32), -(-width // 32)

    def forward(self, images: Tensor) -> Features:
        """Give pooled (B, C) and region (B, L, C) features of normalised images (B, 3, H, W)."""
        *_, (_, x) = self._maps(images)
        return _features(x)

    def last_blocks(self, images: Tensor, n: int) -> Tensor:
        """Give pooled outputs (B, D) of the last n bottlenecks, the oldest first."""
        kept = deque(self._maps(images), maxlen=self.checked_count(n))
        return _pooled([x for _, x in kept])

    def attention(self, images: Tensor) -> Tensor:
        """Give (B, 0, L, L), for there are no heads."""
        rows, columns = self.grid(*images.shape[2:])
        return images.new_zeros(images.shape[0], 0, rows * columns, rows * columns)

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """Give each stage's map (B, C, H, W), finest first."""
        return tuple(dict(self._maps(images)).values())

    def all_outputs(self, images: Tensor, n: int) -> AllOutputs:
        """Give all of `forward`, `attention`, `last_blocks`, `pyramid` from a single pass."""
        last: deque[Tensor] = deque(maxlen=self.checked_count(n))
        stages: dict[str, Tensor] = {}
        for stage, x in self._maps(images):
            stages[stage] = x
            last.append(x)
        pyramid = tuple(stages.values())
        outputs = *_features(pyramid[-1]), self.attention(images), _pooled(last)
        return AllOutputs(*outputs, pyramid)

    def _maps(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Give the map (B, C, H, W) after each bottleneck, with its stage's name."""
        x = checked_images(images, self.config.least_side)
        for part in _PARTS[:4]:
            x = self.get_submodule(part)(x)
        for stage in _STAGES:
            for block in cast(nn.Sequential, self.get_submodule(stage)):
                x = self.run_block(block, x)
                yield stage, x


def _torchvision_resnet(config: ResNetConfig) -> Any:  # torchvision has no types
    """Build torchvision's network, freshly initialised; torchvision is imported by who needs it."""
    from esvit.backbones.vision import torchvision

    models = torchvision.models.resnet
    return models.ResNet(models.Bottleneck, list(config.depths), width_per_group=config.width)


def _features(x: Tensor) -> Features:
    """Lay the last map (B, C, H, W) out as features."""
    regions = x.flatten(2).transpose(1, 2)
    return Features(regions.mean(1), regions)


def _pooled(maps: Iterable[Tensor]) -> Tensor:
    """Average maps over their positions and join them: (B, D)."""
    return torch.cat([x.mean((2, 3)) for x in maps], dim=-1)
