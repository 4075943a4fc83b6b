import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from esvit.backbones import SwinConfig, build, windows
from esvit.backbones.layers import drop_path
from esvit.backbones.maps import MapBackbone
from esvit.backbones.packed import MapSize, split_maps
from esvit.backbones.swin_layers import SwinBlock
from esvit.backbones.windows import Windows, layout_of, to_windows
from tests import oracles
from tests.conftest import TINY

CASES = [
    ("swin_small_w7", "x224"),
    ("swin_small_w7", "x96"),
    ("swin_small_w7", "x112"),
    ("swin_small_w7", "x100"),
    ("swin_small_w14", "x224"),
    ("swin_small_w14", "x96"),
    ("swin_small_w14", "x112"),
]


def load(path):
    arrays = np.load(path, allow_pickle=False)
    fields = json.loads(bytes(arrays["config_json"]))
    config = SwinConfig(
        dim=fields["embed_dim"],
        depths=tuple(fields["depths"]),
        num_heads=tuple(fields["num_heads"]),
        window=fields["window_size"],
    )
    backbone = build(config).eval()
    state = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("sd/")}
    backbone.load_state_dict(state)
    return backbone, arrays


def images_of(arrays, name):
    return torch.from_numpy(arrays[f"in/{name}"].astype(np.float32) * arrays["in_scale"])


def assert_equals(actual, expected):
    torch.testing.assert_close(actual, torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("file", "name"), CASES)
@torch.no_grad()
def test_features_equal_the_reference(reference, file, name):
    backbone, arrays = load(reference / f"{file}.npz")
    images = images_of(arrays, name)
    pooled, regions = backbone(images)
    assert_equals(pooled, arrays[f"out/{name}/global"])
    assert_equals(regions, arrays[f"out/{name}/region"])
    assert_equals(backbone.last_blocks(images, 4), arrays[f"out/{name}/n_last"])


@pytest.mark.parametrize(("file", "name"), [case for case in CASES if case[1] in ("x224", "x96")])
@torch.no_grad()
def test_attention_equals_the_reference(reference, file, name):
    backbone, arrays = load(reference / f"{file}.npz")
    attention = backbone.attention(images_of(arrays, name))
    side = int(attention.shape[-1] ** 0.5)
    real = [7 * row + column for row in range(side) for column in range(side)]
    assert_equals(attention, arrays[f"out/{name}/attn_last"][:, :, real][..., real])


@pytest.mark.parametrize(("file", "name"), CASES)
@torch.no_grad()
def test_every_block_attends_as_the_reference_does(reference, file, name):
    backbone, arrays = load(reference / f"{file}.npz")
    seen = []

    def record(block, args, _):
        (x,) = args
        layout = layout_of(block.windows, x.shape[1], x.shape[2], x.device)
        cut = to_windows(block.norm1(x), layout)
        seen.append(block.attn.with_weights(cut, block.attn.bias(layout.mask))[1])

    for stage in backbone.layers:
        for block in stage.blocks:
            block.register_forward_hook(record)
    backbone(images_of(arrays, name))
    for number, weights in enumerate(seen):
        key = f"out/{name}/attn_all/{number}"
        assert list(weights.shape) == arrays[f"{key}/shape"].tolist()
        assert_equals(weights.flatten()[arrays[f"{key}/sample_idx"]], arrays[f"{key}/sample"])
    assert len(seen) == 8


@pytest.mark.parametrize(("H", "W"), [(5, 9), (3, 3), (8, 5)])
@pytest.mark.parametrize("windows_of", [Windows(4), Windows(4, 2), Windows(4, 2, True)])
def test_padding_that_is_not_multiplied_changes_nothing(H, W, windows_of, monkeypatch):
    torch.manual_seed(0)
    block = SwinBlock(8, 2, windows_of, 2.0, 0.0).double()
    block.apply(lambda module: [torch.nn.init.normal_(p) for p in module.parameters()])
    x = torch.randn(3, H, W, 8, dtype=torch.float64, requires_grad=True)
    found = []
    for much in (1.0, math.inf):
        monkeypatch.setattr(windows, "MUCH_PADDING", much)
        y = block(x)
        found.append((y, *torch.autograd.grad(y.cos().sum(), [x, *block.parameters()])))
        with torch.no_grad():
            torch.testing.assert_close(block(x), y)
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("H", "W"), [(4, 4), (5, 9), (2, 3), (8, 4)])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("mask_padding", [False, True])
@torch.no_grad()
def test_attention_equals_the_written_out_sum(H, W, shift, mask_padding):
    torch.manual_seed(0)
    block = SwinBlock(6, 1, Windows(4, shift, mask_padding), 4.0, 0.0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, H, W, 6)
    attn = block.attn
    table = attn.relative_position_bias_table[:, 0]
    attended = oracles.window_attention(
        attn.qkv(block.norm1(x))[0].view(H, W, 3, 6),
        attn.qkv.bias.view(3, 6),
        table,
        side=4,
        shift=shift,
        mask_padding=mask_padding,
    )
    expected = x + attn.proj(attended)
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x), expected, atol=1e-4, rtol=1e-4)


def test_attention_is_zero_across_windows(tiny_backbone):
    attention = tiny_backbone.attention(torch.randn(1, 3, 224, 448))  # two windows side by side
    is_left = torch.arange(98) % 14 < 7
    assert not attention[:, :, is_left][..., ~is_left].any()
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 4, 98))


def test_masked_padding_leaves_nothing_to_padding():
    torch.manual_seed(0)
    images = torch.randn(1, 3, 96, 64)
    masked = build(replace(TINY, mask_padding=True)).eval()
    plain = build(TINY).eval()
    plain.load_state_dict(masked.state_dict())
    torch.testing.assert_close(masked.attention(images).sum(-1), torch.ones(1, 4, 6))
    assert (plain.attention(images).sum(-1) < 0.9).all()


@pytest.mark.parametrize(("H", "W"), [(4, 4), (33, 57), (224, 32), (99, 130)])
@pytest.mark.parametrize("mask_padding", [False, True])
def test_any_size_gives_one_region_for_each_32_pixels_begun(H, W, mask_padding):
    torch.manual_seed(0)
    backbone = build(replace(TINY, mask_padding=mask_padding)).eval()
    pooled, regions = backbone(torch.randn(2, 3, H, W))
    rows, columns = -(-(H // 4) // 8), -(-(W // 4) // 8)
    assert regions.shape == (2, rows * columns, 64)
    assert regions.isfinite().all()
    torch.testing.assert_close(pooled, regions.mean(1))


def test_pyramid_ends_in_the_regions(tiny_backbone):
    images = torch.randn(1, 3, 96, 128)
    maps = tiny_backbone.pyramid(images)
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 24, 32), (16, 12, 16), (32, 6, 8), (64, 3, 4)]
    regions = tiny_backbone.norm(maps[-1].permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(regions, tiny_backbone(images).regions)


def test_windows_follow_the_configured_image_size():
    def sides_and_shifts(config):
        backbone = build(config)
        return [
            (stage.blocks[1].windows.side, stage.blocks[1].windows.shift)
            for stage in backbone.layers
        ]

    assert sides_and_shifts(TINY) == [(7, 3), (7, 3), (7, 3), (7, 0)]
    assert sides_and_shifts(replace(TINY, window=14)) == [(14, 7), (14, 7), (14, 0), (7, 0)]


def test_initialisation_is_the_published_one(tiny_backbone):
    for name, value in tiny_backbone.named_parameters():
        if "norm" in name:
            assert (value == float(name.endswith("weight"))).all()
        elif name.endswith("bias") and "patch_embed" not in name:
            assert not value.any()
        elif "patch_embed" not in name and value.numel() > 2000:
            assert value.std().item() == pytest.approx(0.02, rel=0.1)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    x = drop_path(torch.ones(4000, 2, 3), 0.25, training=True)
    assert x.mean().item() == pytest.approx(1.0, abs=0.03)
    kept = x[x[:, 0, 0] > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 4 / 3))
    assert not x[x[:, 0, 0] == 0].any()


def test_drop_rates_grow_linearly_and_rest_in_evaluation():
    backbone = build(replace(TINY, drop_path=0.7))
    rates = [block.drop_rate for stage in backbone.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    images = torch.randn(1, 3, 64, 64)
    assert not torch.equal(backbone(images).pooled, backbone(images).pooled)
    backbone.eval()
    assert torch.equal(backbone(images).pooled, backbone(images).pooled)


def test_training_gives_the_same_numbers_and_reaches_every_parameter(tiny_backbone):
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = tiny_backbone(images).regions
    regions = tiny_backbone(images).regions
    torch.testing.assert_close(regions, expected, atol=1e-5, rtol=1e-5)
    regions.square().sum().backward()
    assert all(parameter.grad is not None for parameter in tiny_backbone.parameters())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("much", [1.0, 2.0, math.inf])
def test_sizes_together_give_what_each_gives_alone(recompute, mask_padding, much, monkeypatch):
    monkeypatch.setattr(windows, "MUCH_PADDING", much)
    torch.manual_seed(0)
    backbone = build(replace(TINY, mask_padding=mask_padding)).double()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    backbone.recompute = recompute
    sizes = [(2, 3, 224, 224), (3, 3, 96, 96), (1, 3, 50, 130)]
    batches = [torch.randn(size, dtype=torch.float64) for size in sizes]

    def gradients(features):
        parts = [part for of_size in features for part in of_size]
        total = sum((part * torch.arange(part.shape[-1])).sin().sum() for part in parts)
        return parts, torch.autograd.grad(total, list(backbone.parameters()))

    together = gradients(backbone.features(batches))
    by_maps = gradients([MapBackbone.forward(backbone, images) for images in batches])
    torch.testing.assert_close(together, by_maps)
    torch.testing.assert_close(together, gradients([backbone(images) for images in batches]))


def test_sizes_together_in_bfloat16_are_as_near_to_float32_as_each_alone():
    torch.manual_seed(0)
    backbone = build(replace(TINY, dim=32))
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batches = [torch.randn(2, 3, 224, 224), torch.randn(3, 3, 96, 96)]

    def weigh(part):
        return torch.linspace(-1, 1, part.numel()).view_as(part)

    def gradients(run, *, is_rounded):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_rounded):
            parts = [features.regions.float() for features in run()]
            total = sum((part * weigh(part)).sum() for part in parts)
        found = torch.autograd.grad(total, list(backbone.parameters()))
        return torch.cat([gradient.flatten() for gradient in found])

    def together():
        return backbone.features(batches)

    def alone():
        return [MapBackbone.forward(backbone, images) for images in batches]

    exact = gradients(together, is_rounded=False)
    ours, beside = gradients(together, is_rounded=True), gradients(alone, is_rounded=True)
    assert (ours - exact).norm() <= 1.2 * (beside - exact).norm()


def test_maps_on_the_way_cost_a_training_no_more_memory():
    torch.manual_seed(0)
    backbone, images = build(TINY), torch.randn(2, 3, 224, 224)

    def kept_by(run):
        kept = {}
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(
                lambda x: kept.update({x.data_ptr(): x.numel()}) or x, lambda x: x
            ),
        ):
            outputs = run(images)
        return sum(kept.values()), outputs

    (of_maps, maps), (of_features, _) = kept_by(backbone.pyramid), kept_by(backbone)
    assert of_maps <= of_features
    assert all(x.requires_grad for x in maps)


@pytest.mark.usefixtures("each_library")
def test_no_image_at_all_gives_no_features():
    backbone = build(TINY)
    (found,) = backbone.features([torch.zeros(0, 3, 64, 96)])
    assert (found.pooled.shape, found.regions.shape) == ((0, 64), (0, 6, 64))
    found.regions.sum().backward()
    assert backbone.features([]) == []


def test_features_may_be_changed_in_place():
    backbone, images = build(TINY).eval(), torch.randn(2, 3, 64, 64)
    expected = backbone(images).regions
    regions = backbone(images).regions.mul_(2)
    torch.testing.assert_close(regions, 2 * expected)
    regions.square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_sizes_together_drop_whole_samples():
    torch.manual_seed(0)
    sizes = [MapSize(40, 2, 3), MapSize(60, 1, 4)]
    rows = drop_path(torch.ones(480, 5), 0.25, training=True, sizes=sizes)
    samples = [x.flatten(1) for x in split_maps(rows, sizes)]
    for of_size in samples:
        assert (of_size == of_size[:, :1]).all()
        torch.testing.assert_close(of_size.unique(), torch.tensor([0.0, 4 / 3]))
    assert 0.6 < torch.cat([x[:, 0] for x in samples]).count_nonzero() / 100 < 0.9


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's
@pytest.mark.parametrize("is_layout_known", [False, True])
def test_compiler_sees_one_graph_and_gives_the_same_gradients(
    tiny_backbone, monkeypatch, is_layout_known
):
    # In float32 the operators that torch chooses for the two round as much as a tolerance allows.
    tiny_backbone.double()
    images = torch.randn(1, 3, 40, 72, dtype=torch.float64)
    monkeypatch.setattr(windows, "_layouts", {})
    if is_layout_known:
        tiny_backbone(images)
    torch.compiler.reset()
    compiled = torch.compile(tiny_backbone, backend="eager", fullgraph=True)
    parameters = list(tiny_backbone.parameters())
    actual = torch.autograd.grad(compiled(images).regions.square().sum(), parameters)
    expected = torch.autograd.grad(tiny_backbone(images).regions.square().sum(), parameters)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_parameter_names_are_pinned(tiny_backbone, reference):
    arrays = np.load(reference / "swin_small_w7.npz", allow_pickle=False)
    published = [key[3:] for key in arrays if key.startswith("sd/")]
    assert sorted(tiny_backbone.state_dict()) == sorted(published)
    assert "layers.2.blocks.1.attn.relative_position_bias_table" in published
