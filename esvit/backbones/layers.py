"""What the transformers among the backbones share: norm's epsilon, MLP, stochastic depth."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
"""Epsilon of layer norms; torch's own default would move region features by 3e-5."""


class MLP(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Work on the last axis of (..., C)."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Drop x of whole samples, at random with the given rate, and scale the rest up.

    Stochastic depth (Huang et al. 2016), drawn for each sample: the mean stays what it was.
    """
    kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= rate
    return x * (kept.to(x.dtype) / (1.0 - rate))


def initialise_linear(module: nn.Module) -> None:
    """Draw a linear layer's weights as published; other modules keep theirs."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
