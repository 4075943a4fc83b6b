import copy

import pytest
import torch
from torch import nn

from esvit.backbones import build
from tests.conftest import TINY


@pytest.mark.parametrize("side", [4, 33, 57, 96, 130, 224])
def test_grid_is_that_of_the_regions(tiny_backbone, side):
    rows, columns = tiny_backbone.grid(side, 64)
    assert rows * columns == tiny_backbone(torch.zeros(1, 3, side, 64)).regions.shape[1]


def test_recomputed_block_counts_its_batch_once():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(2, 3, 8, 8)
    found = []
    for recompute in (False, True):
        backbone, own = build(TINY), copy.deepcopy(block)
        backbone.recompute = recompute
        backbone.run_block(own, x).square().sum().backward()
        found.append([*own.buffers(), *(parameter.grad for parameter in own.parameters())])
    for kept, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=0, atol=0)
    assert found[0][2] == 1  # batches tracked
