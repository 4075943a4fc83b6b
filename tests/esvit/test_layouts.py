"""Files as each project publishes them, down to the names; what is read must be the network."""

from dataclasses import replace

import pytest
import torch

from esvit.backbones import ViTConfig, build
from esvit.config import HeadConfig
from esvit.head import ProjectionHead
from esvit.weights import read_weights
from tests.conftest import TINY_RESNET

VIT = ViTConfig(dim=64, depth=2, num_heads=1, image_size=64, drop_path=0.0)
HEAD = HeadConfig(num_prototypes=9, hidden_dim=5, bottleneck_dim=3)


def network(config, seed):
    torch.manual_seed(seed)
    return build(config).eval()


def head(dim, prefix):
    return {f"{prefix}{key}": x for key, x in ProjectionHead(dim, HEAD).state_dict().items()}


def behind(prefix, state):
    return {prefix + key: x for key, x in state.items()}


def of_esvit(student, teacher):
    """ResNet: both networks wrapped twice, with both heads."""
    return {
        name: behind(
            "module.",
            behind("backbone.backbone.", state) | head(2048, "head.") | head(2048, "head_dense."),
        )
        for name, state in (("student", student), ("teacher", teacher))
    }


def of_dino(student, teacher):
    return {
        "student": behind("module.", behind("backbone.", student) | head(64, "head.")),
        "teacher": behind("backbone.", teacher) | head(64, "head."),
        "epoch": 100,
        "args": None,
    }


def of_moco(student, teacher):
    mlp = {"head.0.weight": torch.zeros(4, 64), "head.1.running_mean": torch.zeros(4)}
    encoders = behind("base_encoder.", student | mlp) | behind("momentum_encoder.", teacher | mlp)
    predictor = {"predictor.0.weight": torch.zeros(4, 4)}
    return {
        "epoch": 300,
        "arch": "vit_small",
        "state_dict": behind("module.", encoders | predictor),
    }


def assert_holds(path, which, config, state):
    weights = read_weights(path, which)
    assert replace(weights.backbone, drop_path=0.0) == replace(config, drop_path=0.0)
    backbone = weights.build_backbone()
    for name, value in state.items():
        assert torch.equal(value, backbone.state_dict()[name])
    return weights


@pytest.mark.parametrize(
    ("layout", "config", "heads"),
    [
        (of_esvit, TINY_RESNET, (HEAD, HEAD)),
        (of_dino, VIT, (HEAD, None)),
        (of_moco, replace(VIT, dim=192, num_heads=12), (None, None)),
    ],
)
def test_both_networks_are_read(tmp_path, layout, config, heads):
    student, teacher = (network(config, seed).state_dict() for seed in (0, 1))
    torch.save(layout(student, teacher), tmp_path / "published.pth")
    for which, state in (("student", student), ("teacher", teacher)):
        weights = assert_holds(tmp_path / "published.pth", which, config, state)
        assert (weights.head, weights.head_dense) == heads


@pytest.mark.parametrize("config", [VIT, TINY_RESNET], ids=lambda config: config.kind)
@pytest.mark.parametrize("which", ["student", "teacher"])
def test_backbone_alone_is_either_network(tmp_path, config, which):
    state = network(config, 0).state_dict()
    torch.save(state, tmp_path / "alone.pth")
    weights = assert_holds(tmp_path / "alone.pth", which, config, state)
    assert weights.head is None


@pytest.mark.parametrize(
    ("config", "classifier"), [(VIT, "head"), (TINY_RESNET, "fc")], ids=["deit", "torchvision"]
)
def test_classifier_of_a_supervised_network_is_left_out(tmp_path, config, classifier):
    state = network(config, 0).state_dict()
    added = {f"{classifier}.weight": torch.zeros(10, 4), f"{classifier}.bias": torch.zeros(10)}
    for name, content in (("bare", state | added), ("under", {"model": state | added})):
        torch.save(content, tmp_path / f"{name}.pth")
        assert_holds(tmp_path / f"{name}.pth", "teacher", config, state)


def test_moco_file_without_the_encoder_is_refused(tmp_path):
    state = behind("module.base_encoder.", network(VIT, 0).state_dict())
    torch.save({"state_dict": state}, tmp_path / "moco.pth")
    with pytest.raises(ValueError, match=r"moco\.pth: no network 'teacher'.* momentum_encoder"):
        read_weights(tmp_path / "moco.pth", "teacher")


def test_foreign_head_is_refused_by_name(tmp_path):
    state = network(VIT, 0).state_dict() | {"norm_pre.weight": torch.zeros(64)}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: unexpected tensor norm_pre\.weight"):
        read_weights(tmp_path / "other.pth")
