import argparse
import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from esvit.backbones import SwinConfig, build
from esvit.config import BACKBONES, HeadConfig
from esvit.head import ProjectionHead
from esvit.model import EsViT
from esvit.recognise import recognise_backbone, recognise_head
from esvit.weights import (
    Weights,
    digest,
    read_centers,
    read_checkpoint,
    read_weights,
    write_safetensors,
)
from tests.conftest import TINY

NETWORKS = ["student", "teacher"]


@pytest.fixture
def checkpoint(reference):
    return reference / "checkpoint_tiny.pth"


@pytest.fixture
def arrays(reference):
    return np.load(reference / "checkpoint_tiny.npz", allow_pickle=False)


@pytest.fixture
def weights(tiny_backbone):
    return Weights(state=tiny_backbone.state_dict(), backbone=TINY, about={"epoch": 3})


def assert_equals(actual, expected):
    torch.testing.assert_close(actual, torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_published_checkpoint_gives_its_expected_outputs(checkpoint, arrays, network):
    weights = read_checkpoint(checkpoint, network)
    model = weights.build_model()
    crops = [
        torch.from_numpy(arrays[f"in/crop{number}"].astype(np.float32) * arrays["in_scale"])
        for number in range(4)
    ]
    logits = model.logits(crops)
    expected = f"out/{network}/"
    assert_equals(logits.view, arrays[expected + "cls_logits"])
    assert_equals(logits.regions, arrays[expected + "region_logits"])
    assert_equals(logits.region_features[::3], arrays[expected + "region_fea"])
    assert logits.regions_per_view == (49, 49, 9, 9)
    backbone = weights.build_backbone()
    assert_equals(backbone(crops[0]).pooled, arrays[expected + "global_crop0"])
    assert_equals(backbone.last_blocks(crops[0], 4), arrays[expected + "n_last4_crop0"])
    assert weights.about == {"file": "checkpoint_tiny.pth", "network": network, "epoch": 2}


def test_config_is_recognised_from_a_published_checkpoint(checkpoint):
    weights = read_checkpoint(checkpoint)
    assert weights.backbone == SwinConfig(
        dim=4, depths=(1, 2, 1, 1), num_heads=(1, 1, 2, 4), drop_path=0.0
    )
    expected = HeadConfig(
        num_prototypes=48, hidden_dim=24, bottleneck_dim=12, norm_last_layer=False
    )
    assert (weights.head, weights.head_dense) == (expected, expected)


# MoCo-v3's ViT-S has the tensors of DeiT-S; only the layout of its files tells its heads.
@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "moco_vit_small_p16"])
def test_every_row_is_recognised_from_its_tensors(name):
    with torch.device("meta"):
        state = build(BACKBONES[name]).state_dict()
    assert recognise_backbone(state) == BACKBONES[name]


@pytest.mark.parametrize(("window", "image_size"), [(14, 384), (14, 512), (24, 384), (12, 384)])
def test_other_layouts_give_equal_windows(window, image_size):
    config = SwinConfig(window=window, image_size=image_size)
    with torch.device("meta"):
        backbone = build(config)
        twin = build(recognise_backbone(backbone.state_dict()))
    assert [stage.blocks[0].windows for stage in backbone.layers] == [
        stage.blocks[0].windows for stage in twin.layers
    ]


@pytest.mark.parametrize(
    "config",
    [
        HeadConfig(num_prototypes=9, hidden_dim=5, bottleneck_dim=3, use_bn=True),
        HeadConfig(num_prototypes=9, bottleneck_dim=3, num_layers=1),
        HeadConfig(num_prototypes=9, hidden_dim=5, bottleneck_dim=3, num_layers=2),
    ],
)
def test_head_is_recognised_from_its_tensors(config):
    state = {f"head.{key}": x for key, x in ProjectionHead(4, config).state_dict().items()}
    assert recognise_head(state, "head.") == config
    assert recognise_head(state, "head_dense.") is None


def test_trained_gains_mean_a_free_length():
    head = ProjectionHead(4, HeadConfig(num_prototypes=9, hidden_dim=5, bottleneck_dim=3))
    head.last_layer.weight_g.data[2] = 1.5
    found = recognise_head({f"head.{key}": x for key, x in head.state_dict().items()}, "head.")
    assert not found.norm_last_layer


@pytest.mark.parametrize("prefix", ["", "module."])
def test_heads_are_optional_and_a_prefix_is_too(tmp_path, tiny_backbone, prefix):
    state = {prefix + key: x for key, x in tiny_backbone.state_dict().items()}
    torch.save({"teacher": state}, tmp_path / "bare.pth")
    weights = read_weights(tmp_path / "bare.pth")
    assert weights.head is None
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(weights.build_backbone()(images), tiny_backbone(images))
    with pytest.raises(ValueError, match="no view head"):
        weights.build_model()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layers.1.blocks.1.norm2.bias"), "no tensor layers.1.blocks.1"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected tensor extra"),
        (lambda state: state.update({"norm.bias": torch.zeros(3)}), r"norm.bias has shape \(3,\)"),
        (lambda state: state.pop("patch_embed.proj.weight"), "no tensor patch_embed.proj.weight"),
        (
            lambda state: state.update({"patch_embed.proj.weight": torch.zeros(3)}),
            r"patch_embed.proj.weight has shape \(3,\), expected 4 axes",
        ),
        (lambda state: state.clear(), "tensors of none of the backbones swin, vit"),
        (lambda state: state.update({"norm.bias": 1}), "holds things that are no tensors"),
        (lambda state: state.update({"head.mlp.0.weight": torch.zeros(1)}), "no tensor head.last"),
    ],
)
def test_wrong_tensors_are_refused_by_name(tmp_path, tiny_backbone, change, message):
    state = dict(tiny_backbone.state_dict())
    change(state)
    path = tmp_path / "wrong.pth"
    torch.save({"teacher": state}, path)
    with pytest.raises(ValueError, match=f"wrong.pth: .*{message}"):
        read_weights(path)


@pytest.mark.parametrize("content", [{"student": {}}, [1], {"teacher": 3}])
def test_file_without_the_network_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="no network 'teacher'"):
        read_weights(tmp_path / "foreign.pth")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickle_that_would_run_code_is_refused_and_does_not(tmp_path):
    torch.save({"teacher": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Hostile(tmp_path / "ran"), protocol=2))
    for name in ("hostile.pth", "bare.pth"):
        with pytest.raises(ValueError, match=r"refused, it would run \S*open"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_reading_leaves_torch_as_strict_as_before(checkpoint):
    read_checkpoint(checkpoint)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint, weights_only=True)


def test_numpy_scalars_load_under_their_new_name(tmp_path, tiny_backbone):
    path = tmp_path / "new.pth"
    content = {"lr": np.float64(0.1), "n": np.int64(2), "args": argparse.Namespace(epochs=3)}
    torch.save(content | {"teacher": tiny_backbone.state_dict()}, path)
    assert read_weights(path).backbone.dim == 8


@pytest.mark.parametrize(
    ("epoch", "known"), [(np.int64(3), 3), (torch.tensor(3), 3), (None, None), ("last", None)]
)
def test_what_is_known_of_a_checkpoint_is_json(tmp_path, tiny_backbone, epoch, known):
    path = tmp_path / "a.pth"
    torch.save({"epoch": epoch, "teacher": tiny_backbone.state_dict()}, path)
    assert read_weights(path).about == {"file": "a.pth", "network": "teacher", "epoch": known}


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("size", [0, 100, 500_000])
def test_cut_checkpoint_is_refused_in_one_line(tmp_path, checkpoint, size):
    path = tmp_path / "cut.pth"
    path.write_bytes(checkpoint.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"cut\.pth: not a readable checkpoint") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"}q", b"a", b"(", b"\x80\x02", b"}q\x00u.", b"PK\x03\x04"])
def test_bytes_that_are_no_checkpoint_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "odd.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.pth: not a readable checkpoint") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_own_file_gives_weights_and_configs_back(tmp_path, checkpoint):
    before = read_checkpoint(checkpoint, "student")
    write_safetensors(tmp_path / "own.safetensors", before)
    after = read_weights(tmp_path / "own.safetensors")
    assert (after.backbone, after.head, after.head_dense, after.about) == (
        before.backbone,
        before.head,
        before.head_dense,
        before.about,
    )
    assert digest(after.state) == digest(before.state)
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"]


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["esvit"])


def test_own_file_says_what_kind_of_backbone_it_holds(tmp_path, weights):
    path = tmp_path / "own.safetensors"
    write_safetensors(path, weights)
    fields = metadata_of(path)
    assert fields["backbone"]["kind"] == "swin"
    for kind, message in [("hare", "not weights of ours: 'hare'"), (None, "")]:
        fields["backbone"] |= {"kind": kind}
        if kind is None:  # as the first files of ours
            del fields["backbone"]["kind"]
        save_file(dict(weights.state), path, {"esvit": json.dumps(fields)})
        if message:
            with pytest.raises(ValueError, match=message):
                read_weights(path)
    assert read_weights(path).backbone == TINY


def test_own_file_of_a_model_gives_the_model_back(tmp_path, tiny_backbone):
    config = HeadConfig(num_prototypes=9, hidden_dim=5, bottleneck_dim=3)
    model = EsViT(tiny_backbone, ProjectionHead(64, config), None).eval()
    weights = Weights(state=model.state_dict(), backbone=TINY, head=config, about={})
    write_safetensors(tmp_path / "own.safetensors", weights)
    views = [torch.randn(1, 3, 32, 32)]
    loaded = read_weights(tmp_path / "own.safetensors").build_model()
    torch.testing.assert_close(loaded.logits(views), model.logits(views))


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, weights):
    path = tmp_path / "own.safetensors"
    write_safetensors(path, weights)
    before = path.read_bytes()
    unwritable = Weights(state=weights.state, backbone=TINY, about={"path": tmp_path})
    with pytest.raises(TypeError):
        write_safetensors(path, unwritable)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def with_header(path, header):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_bytes(b"no tensors"),
        lambda path: with_header(path, {}),
        lambda path: with_header(path, {"__metadata__": {"esvit": "{"}}),
        lambda path: with_header(path, {"__metadata__": {"esvit": '{"backbone": {"legs": 4}}'}}),
    ],
)
def test_cut_or_foreign_own_file_is_refused(tmp_path, weights, spoil):
    path = tmp_path / "own.safetensors"
    write_safetensors(path, weights)
    spoil(path)
    with pytest.raises(ValueError, match=r"own\.safetensors: not weights of ours"):
        read_weights(path)


def test_own_file_with_a_tensor_too_few_is_refused(tmp_path, weights):
    state = {key: x for key, x in weights.state.items() if key != "norm.bias"}
    path = tmp_path / "own.safetensors"
    write_safetensors(path, Weights(state=state, backbone=TINY, about={}))
    with pytest.raises(ValueError, match=r"no tensor norm\.bias"):
        read_weights(path)


def test_digest_sees_values_and_names_but_not_order():
    state = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert digest(state) == digest(dict(reversed(state.items())))
    assert digest(state) != digest({"a": torch.ones(2), "c": torch.zeros(2)})
    assert digest(state) != digest({"a": torch.ones(2), "b": torch.full((2,), 1e-9)})


def test_centers_are_read_with_a_published_checkpoint(reference):
    with np.load(reference / "checkpoint_tiny.npz", allow_pickle=False) as recorded:
        centers = read_centers(reference / "checkpoint_tiny.pth")
        assert centers.keys() == {"center", "center_grid"}
        for name, center in centers.items():
            np.testing.assert_array_equal(center, recorded[name])


def test_files_of_ours_hold_no_centers(tmp_path):
    assert read_centers(tmp_path / "teacher.safetensors") == {}
