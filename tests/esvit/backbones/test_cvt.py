from dataclasses import replace

import pytest
import torch

from esvit.backbones import CvTConfig, build
from esvit.backbones.cvt_layers import CvTBlock, QuickGELU
from esvit.recognise import recognise_backbone
from esvit.weights import read_checkpoint
from tests import oracles
from tests.esvit.backbones.references import assert_equals, images_of, load

SMALL = CvTConfig(dims=(8, 12, 24, 48), depths=(1, 1, 2, 2), num_heads=(1, 3, 3, 6), drop_path=0.0)
"""What `cvt_tiny.npz` was recorded with."""


@pytest.fixture
def recorded(reference):
    arrays, _, state = load(reference / "cvt_tiny.npz")
    backbone = build(SMALL)
    backbone.load_state_dict(state)
    return backbone.eval(), arrays


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    backbone = build(SMALL)
    with torch.no_grad():
        backbone(torch.randn(4, 3, 64, 64))  # so that the statistics of batch norms are not trivial
    return backbone.eval()


@pytest.mark.parametrize("name", ["x224", "x96", "x112"])
@torch.no_grad()
def test_features_equal_the_reference(recorded, name):
    backbone, arrays = recorded
    images = images_of(arrays, name)
    pooled, regions = backbone(images)
    assert_equals(pooled, arrays[f"out/{name}/global"])
    assert_equals(regions, arrays[f"out/{name}/region"])
    assert_equals(backbone.last_blocks(images, 3), arrays[f"out/{name}/n_last"])


@pytest.mark.parametrize("recompute", [False, True])
def test_training_gives_the_reference_and_its_batch_statistics(recorded, recompute):
    backbone, arrays = recorded
    backbone.train()
    backbone.recompute = recompute
    pooled, regions = backbone(images_of(arrays, "x224"))
    regions.sum().backward()
    assert_equals(pooled.detach(), arrays["train/global"])
    assert_equals(regions.detach(), arrays["train/region"])
    state = backbone.state_dict()
    seen = [key for key in arrays if key.startswith("train/sd/")]
    assert len(seen) == 18
    for key in seen:
        assert_equals(state[key.removeprefix("train/sd/")], arrays[key])


@pytest.mark.parametrize("network", ["student", "teacher"])
@torch.no_grad()
def test_published_checkpoint_gives_its_expected_outputs(reference, network):
    arrays, fields, _ = load(reference / "checkpoint_tiny_bn.npz")
    spec = fields["spec"]
    config = CvTConfig(
        dims=tuple(spec["DIM_EMBED"]),
        depths=tuple(spec["DEPTH"]),
        num_heads=tuple(spec["NUM_HEADS"]),
        mlp_ratio=spec["MLP_RATIO"][0],
    )
    weights = read_checkpoint(reference / "checkpoint_tiny_bn.pth", network, config)
    assert weights.backbone.drop_path == (0.1 if network == "student" else 0.0)
    crops = [images_of(arrays, f"crop{number}") for number in range(4)]
    logits = weights.build_model().logits(crops)
    expected = f"out/{network}/"
    assert_equals(logits.view, arrays[expected + "cls_logits"])
    assert_equals(logits.regions, arrays[expected + "region_logits"])
    assert_equals(logits.region_features[::3], arrays[expected + "region_fea"])
    backbone = weights.build_backbone()
    assert_equals(backbone(crops[0]).pooled, arrays[expected + "global_crop0"])
    assert_equals(backbone.last_blocks(crops[0], 4), arrays[expected + "n_last4_crop0"])


def test_heads_that_tensors_do_not_tell_are_asked_for(reference):
    with pytest.raises(ValueError, match=r"bn\.pth: heads of a CvT of \(4, 6, 8, 12\) channels"):
        read_checkpoint(reference / "checkpoint_tiny_bn.pth")


def test_numbers_are_told_from_tensors():
    config = CvTConfig(
        dims=(64, 128), depths=(1, 3), num_heads=(1, 2), mlp_ratio=2.0, drop_path=0.0
    )
    with torch.device("meta"):
        assert recognise_backbone(build(config).state_dict()) == config


def test_names_and_size_are_the_published_ones(reference):
    _, _, state = load(reference / "cvt_tiny.npz")
    assert sorted(build(SMALL).state_dict()) == sorted(state)
    with torch.device("meta"):
        published = build(CvTConfig())
    assert sum(parameter.numel() for parameter in published.parameters()) == 29_303_616


@pytest.mark.parametrize(("H", "W"), [(4, 4), (5, 9), (2, 3), (8, 4)])
@torch.no_grad()
def test_attention_equals_the_written_out_sum(H, W):
    torch.manual_seed(0)
    block = build(replace(SMALL, window=4)).eval().stages[1].blocks[0]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, H, W, 12)
    branch = block[0]
    side = min(4, H, W)
    padded = torch.zeros(1, 12, -(-H // side) * side, -(-W // side) * side)
    padded[:, :, :H, :W] = branch.norm(x).permute(0, 3, 1, 2)
    qkv = branch.fn.qkv
    projected = qkv.pw(qkv.bn(qkv.dw(padded)))[0].view(3, 3, 4, *padded.shape[2:])
    heads = [
        oracles.plain_window_attention(projected[:, head], side=side, scale=12**-0.5)
        for head in range(3)
    ]
    attended = torch.cat(heads, dim=-1)[:H, :W].permute(2, 0, 1)[None]
    expected = x + branch.fn.proj_out(attended).permute(0, 2, 3, 1)
    mlp = block[1]
    hidden = mlp.fn.net(mlp.norm(expected).permute(0, 3, 1, 2))
    expected = expected + hidden.permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x), expected, atol=1e-4, rtol=1e-4)


def test_quick_gelu_is_near_the_exact_one():
    x = torch.linspace(-6, 6, 101)
    assert (QuickGELU()(x) - torch.nn.functional.gelu(x)).abs().max() < 0.021
    torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))


def test_attention_rows_sum_to_one_where_nothing_is_padding(backbone):
    attention = backbone.attention(torch.randn(1, 3, 224, 448))
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 6, 98))
    is_left = torch.arange(98) % 14 < 7
    assert not attention[:, :, is_left][..., ~is_left].any()
    assert (backbone.attention(torch.randn(1, 3, 224, 256)).sum(-1) < 0.99).any()


@pytest.mark.parametrize(("H", "W"), [(3, 3), (4, 97), (33, 57), (224, 32), (99, 130)])
@torch.no_grad()
def test_any_size_gives_the_grid_it_says(backbone, H, W):
    pooled, regions = backbone(torch.randn(2, 3, H, W))
    rows, columns = backbone.grid(H, W)
    assert regions.shape == (2, rows * columns, 48)
    assert regions.isfinite().all()
    torch.testing.assert_close(pooled, regions.mean(1))


def test_pyramid_ends_in_the_regions(backbone):
    images = torch.randn(1, 3, 96, 128)
    maps = backbone.pyramid(images)
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 24, 32), (12, 12, 16), (24, 6, 8), (48, 3, 4)]
    regions = backbone.norm(maps[-1].permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(regions, backbone(images).regions)


def test_evaluation_with_gradients_equals_the_layers_one_by_one(backbone):
    block = backbone.stages[0].blocks[0]
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    projection = block[0].fn.qkv
    expected = projection.bn(projection.dw(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    actual = projection.mix(x)
    torch.testing.assert_close(actual, expected)
    names = ["dw.weight", "bn.weight", "bn.bias"]
    parameters = [x, *(projection.get_parameter(name) for name in names)]
    cotangent = torch.randn_like(actual)
    for a, b in zip(
        torch.autograd.grad(actual, parameters, cotangent),
        torch.autograd.grad(expected, parameters, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_drop_rates_grow_linearly():
    backbone = build(replace(SMALL, drop_path=0.5))
    blocks = [block for stage in backbone.stages for block in stage.blocks]
    assert all(isinstance(block, CvTBlock) for block in blocks)
    assert [block.drop_rate for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    for name, value in build(SMALL).named_parameters():
        if "norm" in name or ".bn." in name:
            assert (value == float(name.endswith("weight"))).all()
        elif name.endswith("bias"):
            assert not value.any()
        elif value.numel() > 2000:
            assert value.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": (8, 12)}, "expected as many of each"),
        ({"depths": (1, 1, 0, 2)}, "at least 1 block a stage"),
        ({"num_heads": (1, 5, 3, 6)}, "12 channels do not divide among 5 heads"),
        ({"window": 0}, "window is 0"),
        ({"drop_path": 1.0}, r"drop_path is 1\.0"),
    ],
)
def test_impossible_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
