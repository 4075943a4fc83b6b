"""The projection head of DINO (Caron et al. 2021, section 3.1), used by both tasks of EsViT.

An MLP leads to a bottleneck on the unit sphere; a weight-normed linear layer compares it with K
prototypes. Losses that never store logits stop at the bottleneck and take the prototypes apart.

Shape letters: N rows (views or regions), C features, D bottleneck, K prototypes.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit.backbones.layers import initialise_linear
from esvit.backbones.linear import linear
from esvit.config import HeadConfig


class Prototypes(NamedTuple):
    """What a head compares a bottleneck with, as direction and length.

    Weight normalisation (Salimans and Kingma 2016): the two are learned apart.

    Attributes:
        directions: (K, D), of any length over 0.
        lengths: (K, 1), of the effective prototypes.
    """

    directions: Tensor
    lengths: Tensor

    @property
    def scales(self) -> Tensor:
        """What each direction is multiplied with, (K, 1)."""
        norms: Tensor = torch.linalg.vector_norm(self.directions, dim=1, keepdim=True)
        return self.lengths / norms

    @property
    def weight(self) -> Tensor:
        """The effective prototypes (K, D), of which logits are the products with a bottleneck."""
        return self.directions * self.scales


class WeightNormed(nn.Module):
    """The prototypes under the names of the published checkpoints."""

    def __init__(self, in_dim: int, num_prototypes: int, norm_last_layer: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1), not norm_last_layer)
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, in_dim))
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))  # as nn.Linear does

    @property
    def prototypes(self) -> Prototypes:
        """The parameters by their meaning."""
        return Prototypes(self.weight_v, self.weight_g)


class ProjectionHead(nn.Module):
    """Features to logits over K prototypes."""

    def __init__(self, in_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.mlp = _mlp(in_dim, config)
        self.mlp.apply(initialise_linear)
        self.last_layer = WeightNormed(
            config.bottleneck_dim, config.num_prototypes, config.norm_last_layer
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C) to logits (N, K)."""
        return F.linear(self.bottleneck(x), self.prototypes.weight)

    def bottleneck(self, x: Tensor) -> Tensor:
        """Map features (N, C) to points (N, D) on the unit sphere, in float32 at least.

        Logits are divided by small temperatures; bfloat16 would be a quarter percent off.
        """
        points = x
        for layer in self.mlp if isinstance(self.mlp, nn.Sequential) else [self.mlp]:
            points = linear(layer, points) if isinstance(layer, nn.Linear) else layer(points)
        return F.normalize(points.to(torch.promote_types(points.dtype, torch.float32)), dim=-1)

    @property
    def prototypes(self) -> Prototypes:
        """The K prototypes, with gradients to direction and (if free) length."""
        return self.last_layer.prototypes


def _mlp(in_dim: int, config: HeadConfig) -> nn.Module:
    """Make the layers up to the bottleneck; a single one is no sequence in the published names."""
    if config.num_layers == 1:
        return nn.Linear(in_dim, config.bottleneck_dim)
    layers: list[nn.Module] = []
    dims = [in_dim, *[config.hidden_dim] * (config.num_layers - 1)]
    for dim in dims[:-1]:
        layers.append(nn.Linear(dim, config.hidden_dim))
        if config.use_bn:
            layers.append(nn.BatchNorm1d(config.hidden_dim))
        layers.append(nn.GELU())
    return nn.Sequential(*layers, nn.Linear(dims[-1], config.bottleneck_dim))
