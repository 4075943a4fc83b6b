import json

import numpy as np
import pytest
import torch

from esvit.backbones import ViTConfig, build
from tests import oracles
from tests.conftest import TINY_VIT

SIZES = ["x224", "x96", "x112"]


@pytest.fixture
def arrays(reference):
    return np.load(reference / "vit_tiny.npz", allow_pickle=False)


@pytest.fixture
def recorded(arrays):
    fields = json.loads(bytes(arrays["config_json"]))
    config = ViTConfig(
        dim=fields["embed_dim"], depth=fields["depth"], num_heads=fields["num_heads"]
    )
    backbone = build(config).eval()
    backbone.load_state_dict(
        {key[3:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("sd/")}
    )
    return backbone


def images_of(arrays, name):
    return torch.from_numpy(arrays[f"in/{name}"].astype(np.float32) * arrays["in_scale"])


def assert_equals(actual, expected):
    torch.testing.assert_close(actual, torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_features_equal_the_reference(recorded, arrays, name):
    images = images_of(arrays, name)
    pooled, regions = recorded(images)
    assert_equals(pooled, arrays[f"out/{name}/cls"])
    assert_equals(regions, arrays[f"out/{name}/patch"])
    last_blocks = recorded.last_blocks(images, 2)
    assert_equals(last_blocks, arrays[f"out/{name}/n_last"])
    with_mean = torch.cat([last_blocks, regions.mean(1)], dim=-1)  # the probe of DINO's ViT-B
    assert_equals(with_mean, arrays[f"out/{name}/n_last_avgpool"])


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_positions_equal_the_reference(recorded, arrays, name):
    side = arrays[f"in/{name}"].shape[-1] // 16
    positions = torch.cat(recorded._positions(side, side), dim=1)
    assert_equals(positions, arrays[f"out/{name}/pos_embed_used"])


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_every_block_attends_as_the_reference_does(recorded, arrays, name):
    seen = []
    for block in recorded.blocks:
        block.attn.register_forward_hook(
            lambda attn, args, _: seen.append(attn.with_weights(*args)[1])
        )
    images = images_of(arrays, name)
    recorded(images)
    for number, weights in enumerate(seen):
        key = f"out/{name}/attn_all/{number}"
        assert list(weights.shape) == arrays[f"{key}/shape"].tolist()
        assert_equals(weights.flatten()[arrays[f"{key}/sample_idx"]], arrays[f"{key}/sample"])
    assert len(seen) == 2
    last = seen[-1]
    assert_equals(last[:, :, 0], arrays[f"out/{name}/attn_last/cls_row"])
    torch.testing.assert_close(recorded.attention(images), last[:, :, 1:, 1:])


def test_attention_equals_the_written_out_sum():
    torch.manual_seed(0)
    attention = build(TINY_VIT).blocks[0].attn
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 5, TINY_VIT.dim)
    heads = attention.qkv(x)[0].view(5, 3, TINY_VIT.num_heads, -1)
    expected = torch.cat([oracles.attention(*head.unbind(1)) for head in heads.unbind(2)], dim=-1)
    torch.testing.assert_close(attention(x)[0], attention.proj(expected), atol=1e-4, rtol=1e-4)


def test_what_is_left_of_a_row_goes_to_the_class_token():
    torch.manual_seed(0)
    backbone = build(TINY_VIT).eval()
    sums = backbone.attention(torch.randn(1, 3, 64, 48)).sum(-1)
    assert (sums < 1).all()
    assert (sums > 0.5).all()


def test_maps_of_all_blocks_have_the_side_of_the_patches():
    torch.manual_seed(0)
    backbone = build(TINY_VIT).eval()
    images = torch.randn(2, 3, 64, 48)
    maps = backbone.pyramid(images)
    assert [tuple(x.shape) for x in maps] == [(2, TINY_VIT.dim, 4, 3)] * TINY_VIT.depth
    regions = torch.nn.functional.layer_norm(
        maps[-1].flatten(2).transpose(1, 2), [TINY_VIT.dim], eps=1e-6
    )
    torch.testing.assert_close(regions, backbone(images).regions)


def test_deep_network_gives_a_map_after_each_quarter():
    backbone = build(ViTConfig(dim=8, depth=12, num_heads=1)).eval()
    seen = {}
    for number, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda _, __, x, number=number: seen.update({number: x}))
    maps = backbone.pyramid(torch.randn(1, 3, 32, 32))
    for number, x in zip((2, 5, 8, 11), maps, strict=True):
        assert torch.equal(x.flatten(2).transpose(1, 2), seen[number][:, 1:])


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    backbone = build(ViTConfig(dim=64, depth=1, num_heads=1))
    for name, value in backbone.named_parameters():
        if "norm" in name:
            assert (value == float(name.endswith("weight"))).all()
        elif name.endswith("bias") and "patch_embed" not in name:
            assert not value.any()
        elif "patch_embed" not in name and value.numel() > 2000:
            assert value.std().item() == pytest.approx(0.02, rel=0.1)
    assert backbone.cls_token.std() > 0


def test_parameter_names_are_pinned(recorded, arrays):
    published = [key[3:] for key in arrays if key.startswith("sd/")]
    assert sorted(recorded.state_dict()) == sorted(published)
    assert {"cls_token", "pos_embed", "blocks.1.attn.qkv.weight"} <= set(published)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "384 channels do not divide among 5 heads"),
        ({"depth": 0}, "depth is 0"),
        ({"patch": 0}, "patch 0"),
        ({"drop_path": -0.1}, r"drop_path is -0.1, expected \[0, 1\)"),
        ({"image_size": 15}, "image_size is 15, expected at least 16"),
    ],
)
def test_impossible_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": torch.zeros(1, 6, 64)}, "5 positions besides one class token"),
        ({"patch_embed.proj.weight": torch.zeros(48, 3, 16, 16)}, "48 channels"),
    ],
)
def test_network_that_is_not_ours_is_not_taken_for_it(change, message):
    state = build(ViTConfig(dim=64, depth=1, num_heads=1)).state_dict() | change
    with pytest.raises(ValueError, match=message):
        ViTConfig.recognise(state)
