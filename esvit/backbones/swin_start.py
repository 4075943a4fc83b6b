"""A start for small Swins: attention begins at neighbours, as convolutions do.

Published weights are drawn with a standard deviation of 0.02 and next to no position bias. At a
width of 64 what a block adds is then 3 % of what it is given in the first block and a fifth in the
others (with this start: about as much). The network begins nearly linear, its pooled feature is
little more than the mean colour, and heads first have to learn that places matter. A run over a
million photographs does not mind; one of hours on thousands does.

Here weights keep the size of what they multiply, and each head begins at one of the eight
neighbours (d'Ascoli et al. 2021, section 3, for global attention). All of it can be unlearnt.
"""

import math

import torch
from torch import nn

from esvit.backbones.swin import Swin
from esvit.backbones.swin_layers import WindowAttention

STRENGTH = 3.0
"""Of the bias: it falls by this times the squared distance from the neighbour, in regions."""

_NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
"""Rows and columns from the region that asks; heads take them in turn."""


@torch.no_grad()
def start_local(backbone: Swin) -> None:
    """Draw the weights of linear layers and the position biases anew, in place."""
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(module.in_features))
        elif isinstance(module, WindowAttention):
            _look_at_neighbours(module.relative_position_bias_table)


def _look_at_neighbours(table: torch.Tensor) -> None:
    """Fill a table of biases ((2 M - 1)^2, heads), whose middle row is a region's own place."""
    reach = math.isqrt(len(table)) // 2
    steps = torch.arange(-reach, reach + 1.0)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    for head in range(table.shape[1]):
        row, column = _NEIGHBOURS[head % len(_NEIGHBOURS)]
        table[:, head] = -STRENGTH * ((rows - row) ** 2 + (columns - column) ** 2).flatten()
