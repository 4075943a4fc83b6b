from dataclasses import replace

import pytest
import torch

from esvit.backbones import ViLConfig, build, chunks
from esvit.backbones.sliding import SlidingAttention
from esvit.backbones.vil_attention import FullAttention, Tokens
from esvit.recognise import recognise_backbone
from esvit.weights import Weights, digest, read_weights, write_safetensors
from tests import oracles
from tests.esvit.backbones.references import assert_equals, images_of, load

PUBLISHED = (
    "l1,h3,d96,n2,s1,g1,p4,f7,a0_l2,h6,d192,n2,s1,g1,p2,f7,a0_"
    "l3,h12,d384,n6,s0,g1,p2,f7,a0_l4,h24,d768,n2,s0,g0,p2,f7,a0"
)
SMALL = ViLConfig(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), drop_path=0.0)
"""What `vil_tiny.npz` was recorded with."""

SLIDING = ViLConfig(
    dims=(8, 12),
    depths=(1, 2),
    num_heads=(1, 2),
    patches=(4, 2),
    num_class_tokens=(2, 1),
    windows=(3, 3),
    drop_path=0.0,
)
"""Attention slides up to the last block, and there is a class token to pool."""

AROUND = [(v, u) for v in (-1, 0, 1) for u in (-1, 0, 1)]


@pytest.fixture
def recorded(reference):
    arrays, _, state = load(reference / "vil_tiny.npz")
    backbone = build(SMALL)
    backbone.load_state_dict(state)
    return backbone.eval(), arrays


@pytest.fixture(params=[SMALL, SLIDING], ids=["small", "sliding"])
def backbone(request):
    torch.manual_seed(0)
    backbone = build(request.param).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return backbone


@pytest.mark.parametrize("name", ["x224", "x96"])
@torch.no_grad()
def test_features_equal_the_reference(recorded, name):
    backbone, arrays = recorded
    images = images_of(arrays, name)
    pooled, regions = backbone(images)
    assert_equals(pooled, arrays[f"out/{name}/global"])
    assert_equals(regions, arrays[f"out/{name}/region"])
    assert_equals(backbone.last_blocks(images, 3), arrays[f"out/{name}/n_last"])


def test_names_are_the_published_ones(reference):
    _, _, state = load(reference / "vil_tiny.npz")
    backbone = build(SMALL)
    assert sorted(backbone.state_dict()) == sorted(state)
    for name, index in backbone.named_buffers():
        assert torch.equal(index, state[name])


def test_published_string_gives_the_published_network():
    assert ViLConfig.parse(PUBLISHED) == ViLConfig()
    with torch.device("meta"):
        backbone = build(ViLConfig())
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 27_569_352


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("", "'' is not one of l, h"),
        ("l1,x3", "'x3' is not one of l, h"),
        ("l1,d", "'d' is not one of l, h"),
        ("l1,a0_l3,a0", "does not number its stages"),
        ("l1,h3,d96,n2", "has absolute positions, expected a0"),
        ("l1,s0,a0_l2,s1,g0,a0", r"windows are \(0, 7\), expected .* 0 in every stage after a 0"),
    ],
)
def test_impossible_string_is_refused(arch, message):
    with pytest.raises(ValueError, match=message):
        ViLConfig.parse(arch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": (8, 16)}, "expected as many of each"),
        ({"depths": (1, 0, 2, 1)}, "the first four at least 1"),
        ({"num_heads": (3, 2, 2, 4)}, "8 channels do not divide among 3 heads"),
        ({"num_class_tokens": (1, 1, 1, 2)}, "in the last stage at most 1"),
        ({"windows": (7, -1, 0, 0)}, "expected at least 0"),
        ({"neighbours": "some"}, "neighbours is 'some'"),
        ({"drop_path": 1.0}, r"drop_path is 1\.0"),
        ({"image_size": 31}, "image_size is 31, expected at least 32"),
    ],
)
def test_impossible_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    "config",
    [
        SLIDING,
        replace(SLIDING, windows=(3, 0), mlp_ratio=2.0, image_size=64),
        replace(SMALL, image_size=384, num_class_tokens=(1, 0, 2, 1)),
    ],
)
def test_numbers_are_told_from_tensors(config):
    with torch.device("meta"):
        assert recognise_backbone(build(config).state_dict()) == config


def test_class_tokens_with_weights_of_their_own_are_refused(reference):
    _, _, state = load(reference / "vil_tiny.npz")
    state["layer2.1.attn.kv_global.bias"] = state["layer2.1.attn.kv_global.bias"] + 1
    with pytest.raises(ValueError, match=r"layer2\.1\.attn\.kv_global\.bias differs"):
        recognise_backbone(state)


def test_own_file_holds_shared_weights_under_both_names(tmp_path):
    backbone = build(SMALL)
    weights = Weights(state=backbone.state_dict(), backbone=SMALL, about={})
    write_safetensors(tmp_path / "own.safetensors", weights)
    found = read_weights(tmp_path / "own.safetensors")
    assert (found.backbone, digest(found.state)) == (SMALL, digest(weights.state))
    attention = found.build_backbone().get_submodule("layer1.1.attn")
    assert attention.query_global is attention.query


def sliding(neighbours, num_class_tokens=2):
    torch.manual_seed(0)
    attention = SlidingAttention(4, 1, num_class_tokens, side=2, neighbours=neighbours)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def written_out(attention, tokens, seen):
    """What the positions get, projected, by the loops of the oracle."""
    G = attention.num_class_tokens
    x, H, W = tokens
    qkv = torch.cat([attention.query(x), attention.kv(x)], dim=-1)[0].view(-1, 3, 4)
    mixed = oracles.sliding_attention(
        qkv[G:].view(H, W, 3, 4),
        qkv[:G],
        attention.local_relative_position_bias_table[:, 0],
        attention.g2l_relative_position_bias[1, 0] if G else [],
        side=2,
        seen=seen,
    )
    return attention.proj(mixed.view(1, H * W, 4))


@pytest.mark.parametrize(("H", "W"), [(6, 6), (5, 3), (1, 7), (4, 3), (2, 2)])
@pytest.mark.parametrize("num_class_tokens", [0, 2])
@pytest.mark.parametrize("neighbours", ["all", "random", "none"])
@torch.no_grad()
def test_sliding_attention_equals_the_written_out_sum(H, W, num_class_tokens, neighbours):
    attention = sliding(neighbours, num_class_tokens).eval()
    tokens = Tokens(torch.randn(1, num_class_tokens + H * W, 4), H, W)
    seen = [(0, 0)] if neighbours == "none" else AROUND
    expected = written_out(attention, tokens, seen)
    actual, weights = attention.with_weights(tokens)
    torch.testing.assert_close(actual[:, num_class_tokens:], expected)
    torch.testing.assert_close(attention(tokens), actual)
    assert weights.shape == (1, 1, H * W, H * W)


@torch.no_grad()
def test_training_sees_itself_and_one_random_neighbour():
    attention = sliding("random")
    tokens = Tokens(torch.randn(1, 2 + 5 * 5, 4), 5, 5)
    possible = [written_out(attention, tokens, [(0, 0), step]) for step in AROUND if any(step)]
    drawn = set()
    for _ in range(40):
        found = attention(tokens)[:, 2:]
        equal = [number for number, x in enumerate(possible) if torch.allclose(x, found, atol=1e-5)]
        assert len(equal) == 1
        drawn |= set(equal)
    assert drawn == set(range(8))


@torch.no_grad()
def test_seed_decides_what_is_drawn():
    attention = sliding("random")
    tokens = Tokens(torch.randn(1, 2 + 5 * 5, 4), 5, 5)
    torch.manual_seed(3)
    first = [attention(tokens) for _ in range(4)]
    torch.manual_seed(3)
    assert all(torch.equal(attention(tokens), x) for x in first)


@pytest.mark.parametrize(("H", "W"), [(7, 5), (3, 3)])
@torch.no_grad()
def test_class_tokens_attend_to_everything(H, W):
    attention = sliding("all").eval()
    tokens = Tokens(torch.randn(1, 2 + H * W, 4), H, W)
    query = attention.query(tokens.x)[:, :2]
    key, value = attention.kv(tokens.x).chunk(2, dim=-1)
    to_positions = attention.g2l_relative_position_bias[0, 0][:, None].expand(2, H * W)
    bias = torch.cat([attention.g2g_relative_position_bias[0], to_positions], dim=1)
    weights = (query @ key.mT / 2 + bias).softmax(-1)
    torch.testing.assert_close(attention(tokens)[:, :2], attention.proj(weights @ value))


@torch.no_grad()
def test_weights_are_what_mixes_the_values():
    attention = sliding("all", 0).eval()
    tokens = Tokens(torch.randn(2, 7 * 5, 4), 7, 5)
    x, weights = attention.with_weights(tokens)
    value = attention.kv(tokens.x)[..., 4:]
    torch.testing.assert_close(x, attention.proj(weights[:, 0] @ value))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 35))


@torch.no_grad()
def test_full_attention_equals_the_written_out_sum():
    torch.manual_seed(0)
    attention = FullAttention(4, 1, 1, side=3)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, 10, 4)
    query, key, value = attention.qkv(x)[0].view(10, 3, 4).unbind(1)
    bias = torch.zeros(10, 10)
    bias[0, 0] = attention.g2g_relative_position_bias[0, 0, 0]
    bias[0, 1:] = attention.g2l_relative_position_bias[0, 0, 0]
    bias[1:, 0] = attention.g2l_relative_position_bias[1, 0, 0]
    for q in range(9):
        for k in range(9):
            row = (q // 3 - k // 3 + 2) * 5 + q % 3 - k % 3 + 2
            bias[1 + q, 1 + k] = attention.local_relative_position_bias_table[row, 0]
    weights = (query @ key.T / 2 + bias).softmax(-1)
    expected = attention.proj(weights @ value)
    actual, found = attention.with_weights(Tokens(x, 3, 3))
    torch.testing.assert_close(actual[0], expected)
    torch.testing.assert_close(attention(Tokens(x, 3, 3))[0], expected)
    torch.testing.assert_close(found[0, 0], weights[1:, 1:])


def test_all_outputs_equal_the_single_ones(backbone):
    images = torch.randn(2, 3, 70, 110)
    n = backbone.num_blocks
    pooled, regions, attention, last_blocks, maps = backbone.all_outputs(images, n)
    expected = backbone(images)
    torch.testing.assert_close(pooled, expected.pooled)
    torch.testing.assert_close(regions, expected.regions)
    torch.testing.assert_close(attention, backbone.attention(images))
    torch.testing.assert_close(last_blocks, backbone.last_blocks(images, n))
    torch.testing.assert_close(maps, backbone.pyramid(images))


def test_attention_leaves_class_tokens_out():
    torch.manual_seed(0)
    images = torch.randn(1, 3, 96, 72)
    whole = build(SMALL).eval().attention(images)
    torch.testing.assert_close(whole.sum(-1), torch.ones(1, 4, 6))
    attention = build(SLIDING).eval().attention(images)
    assert attention.shape == (1, 2, 108, 108)
    assert (attention.sum(-1) < 1).all()
    assert not attention[0, 0, 0, 12 * 6 :].any()  # two chunks further down


@pytest.mark.parametrize(("H", "W"), [(32, 32), (33, 257), (224, 32), (99, 130)])
@torch.no_grad()
def test_any_size_gives_the_grid_it_says(backbone, H, W):
    regions = backbone(torch.randn(2, 3, H, W)).regions
    rows, columns = backbone.grid(H, W)
    assert regions.shape == (2, rows * columns, backbone.dim)
    assert regions.isfinite().all()


def test_pyramid_ends_in_the_regions(backbone):
    images = torch.randn(1, 3, 96, 128)
    maps = backbone.pyramid(images)
    sizes = [
        (dim, 96 // s, 128 // s)
        for dim, s in zip(backbone.config.dims, backbone.config.strides, strict=True)
    ]
    assert [tuple(x.shape[1:]) for x in maps] == sizes
    regions = backbone.norm(maps[-1].flatten(2).mT)
    torch.testing.assert_close(regions, backbone(images).regions)


@torch.no_grad()
def test_first_class_token_is_pooled_where_there_is_one(backbone):
    images = torch.randn(1, 3, 64, 64)
    pooled, regions = backbone(images)
    is_mean = torch.allclose(pooled, regions.mean(1), atol=1e-6)
    assert is_mean == (backbone.config.num_class_tokens[-1] == 0)


def test_drop_rates_grow_linearly_over_blocks():
    backbone = build(replace(SMALL, drop_path=0.4))
    layers = [layer for stage in backbone.children() for layer in list(stage.children())[1:]]
    rates = [layer.drop_rate for layer in layers]
    assert rates == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's
@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("is_layout_known", [False, True])
def test_compiler_sees_one_graph_and_gives_the_same_gradients(
    monkeypatch, is_training, is_layout_known
):
    torch.manual_seed(0)
    backbone = build(replace(SLIDING, neighbours="none")).train(is_training)
    images = torch.randn(1, 3, 96, 72)
    monkeypatch.setattr(chunks, "_chunks", {})
    if is_layout_known:
        backbone(images)
    torch.compiler.reset()
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    parameters = [p for name, p in backbone.named_parameters()]
    actual = torch.autograd.grad(compiled(images).regions.square().sum(), parameters)
    expected = torch.autograd.grad(backbone(images).regions.square().sum(), parameters)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's
def test_compiler_takes_random_neighbours_into_the_graph():
    backbone = build(SLIDING)
    torch.compiler.reset()
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    images = torch.randn(1, 3, 96, 72)
    assert len({compiled(images).pooled.sum().item() for _ in range(20)}) > 1


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    for name, value in build(SMALL).named_parameters():
        if "norm" in name:
            assert (value == float(name.endswith("weight"))).all()
        elif name.endswith(".bias") and not name.endswith("0.proj.bias"):
            assert not value.any()
        elif not name.endswith(("0.proj.weight", "0.proj.bias")):
            assert 0 < value.abs().max() < 0.2
        if "table" in name and value.numel() > 700:
            assert value.std().item() == pytest.approx(0.02, rel=0.1)
