"""What holds of every backbone; a new one has a row in `tests.conftest.TINIES`."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from esvit.backbones import KINDS, build
from tests.conftest import TINIES

SIZES = [(64, 64), (96, 64), (57, 130)]

every_kind = pytest.mark.parametrize("kind", TINIES)


def tiny(kind, **changes):
    torch.manual_seed(0)
    return build(replace(TINIES[kind], **changes)).eval()


def test_every_kind_is_tested():
    assert TINIES.keys() == KINDS.keys()
    assert all(config.kind == kind for kind, config in TINIES.items())


@every_kind
@pytest.mark.parametrize(("H", "W"), SIZES)
@torch.no_grad()
def test_shapes_are_those_promised(kind, H, W):
    backbone = tiny(kind)
    images = torch.randn(2, 3, H, W)
    pooled, regions, attention, last_blocks, maps = backbone.all_outputs(images, 3)
    rows, columns = backbone.grid(H, W)
    L = rows * columns
    assert pooled.shape == (2, backbone.dim)
    assert regions.shape == (2, L, backbone.dim)
    assert attention.shape == (2, backbone.num_heads, L, L)
    assert last_blocks.shape[0] == 2
    assert all(x.isfinite().all() for x in (pooled, regions, attention, last_blocks))
    assert (attention.sum(-1) <= 1 + 1e-5).all()
    assert maps[-1].shape == (2, backbone.dim, rows, columns)
    assert all(a.shape[2] >= b.shape[2] for a, b in pairwise(maps))


@every_kind
def test_features_of_several_sizes_are_those_of_each(kind):
    backbone = tiny(kind)
    batches = [torch.randn(2, 3, *size) for size in SIZES]
    for found, images in zip(backbone.features(batches), batches, strict=True):
        torch.testing.assert_close(found, backbone(images))
    with pytest.raises(ValueError, match="images are"):
        backbone.features([batches[0], torch.randn(2, 1, 64, 64)])


@every_kind
@torch.no_grad()
def test_all_outputs_equal_the_single_ones(kind):
    backbone = tiny(kind)
    images = torch.randn(2, 3, 70, 110)
    for n in (1, backbone.num_blocks):
        pooled, regions, attention, last_blocks, maps = backbone.all_outputs(images, n)
        expected = backbone(images)
        torch.testing.assert_close(pooled, expected.pooled)
        torch.testing.assert_close(regions, expected.regions)
        torch.testing.assert_close(attention, backbone.attention(images))
        torch.testing.assert_close(last_blocks, backbone.last_blocks(images, n))
        torch.testing.assert_close(maps, backbone.pyramid(images))


@every_kind
@torch.no_grad()
def test_batch_agrees_with_single_images(kind):
    backbone = tiny(kind)
    images = torch.randn(3, 3, 112, 96)
    singles = torch.cat([backbone(image[None]).regions for image in images])
    torch.testing.assert_close(backbone(images).regions, singles, atol=1e-5, rtol=1e-5)


@every_kind
@torch.no_grad()
def test_smallest_image_is_accepted_and_a_smaller_one_refused(kind):
    backbone = tiny(kind)
    side = TINIES[kind].least_side
    assert backbone(torch.randn(2, 3, side, side)).regions.isfinite().all()
    for shape in [(3, 224, 224), (1, 1, 224, 224), (1, 3, side - 1, 224)]:
        with pytest.raises(ValueError, match=rf"expected \(B, 3, H, W\).* at least {side}"):
            backbone(torch.zeros(shape))


@every_kind
def test_impossible_number_of_blocks_is_refused(kind):
    backbone = tiny(kind)
    for n in (0, backbone.num_blocks + 1):
        with pytest.raises(ValueError, match=f"n is {n}, expected 1 to {backbone.num_blocks}"):
            backbone.last_blocks(torch.zeros(1, 3, 32, 32), n)
        with pytest.raises(ValueError, match=f"n is {n}"):
            backbone.all_outputs(torch.zeros(1, 3, 32, 32), n)


@every_kind
def test_recomputing_changes_neither_gradients_nor_statistics(kind):
    backbone = tiny(kind).train()
    images = torch.randn(2, 3, 64, 64)
    found = []
    for recompute in (False, True):
        own = copy.deepcopy(backbone)
        own.recompute = recompute
        torch.manual_seed(1)
        features = own(images)
        (features.pooled.square().sum() + features.regions.square().sum()).backward()
        found.append([*own.buffers(), *(parameter.grad for parameter in own.parameters())])
    assert all(x is not None for x in found[0])  # every parameter has a gradient
    for kept, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(kept, recomputed)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's
@pytest.mark.parametrize("kind", ["swin", "cvt"])
def test_recomputed_blocks_compile(kind):
    backbone = tiny(kind).train()
    images = torch.randn(2, 3, 64, 64)
    found = []
    for compiled in (False, True):
        own = copy.deepcopy(backbone)
        own.recompute = True
        torch.compiler.reset()
        run = torch.compile(own, backend="aot_eager") if compiled else own
        torch.manual_seed(1)
        run(images).pooled.square().sum().backward()
        found.append([*own.buffers(), *(parameter.grad for parameter in own.parameters())])
    for eager, traced in zip(*found, strict=True):  # traced operators sum in another order
        torch.testing.assert_close(eager, traced, rtol=1e-4, atol=1e-4)


def test_recomputed_block_counts_its_batch_once():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(2, 3, 8, 8)
    found = []
    for recompute in (False, True):
        backbone, own = tiny("swin"), copy.deepcopy(block)
        backbone.recompute = recompute
        backbone.run_block(own, x).square().sum().backward()
        found.append([*own.buffers(), *(parameter.grad for parameter in own.parameters())])
    for kept, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=0, atol=0)
    assert found[0][2] == 1  # batches tracked


@every_kind
def test_evaluation_is_deterministic_and_drop_path_rests(kind):
    config = TINIES[kind]
    rate = 0.5 if kind != "resnet" else 0.0
    backbone = build(replace(config, drop_path=rate)).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(backbone(images).regions, backbone(images).regions)
    if rate:
        backbone.train()
        assert not torch.equal(backbone(images).regions, backbone(images).regions)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's
@every_kind
def test_compiler_sees_one_graph_and_gives_the_same_gradients(kind):
    # In float32 the operators that torch chooses for the two round as much as a tolerance allows.
    backbone = tiny(kind).double()
    images = torch.randn(1, 3, 40, 72, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    parameters = list(backbone.parameters())

    def gradients(network):
        features = network(images)
        loss = features.pooled.square().sum() + features.regions.square().sum()
        return torch.autograd.grad(loss, parameters)

    for a, b in zip(gradients(compiled), gradients(backbone), strict=True):
        torch.testing.assert_close(a, b)
