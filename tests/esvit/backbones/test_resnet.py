import pytest
import torch

from esvit.backbones import ResNetConfig, build
from esvit.backbones.vision import torchvision
from tests.conftest import TINY_RESNET


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return build(TINY_RESNET)


@pytest.fixture
def original(backbone):
    """Torchvision's network of the same weights, its classifier taken off."""
    models = torchvision.models.resnet
    network = models.ResNet(
        models.Bottleneck, list(TINY_RESNET.depths), width_per_group=TINY_RESNET.width
    )
    network.fc = torch.nn.Identity()
    network.load_state_dict(backbone.state_dict())
    return network


@pytest.mark.parametrize("is_training", [False, True])
def test_features_and_statistics_are_torchvisions(backbone, original, is_training):
    images = torch.randn(3, 3, 70, 96)
    backbone.train(is_training)
    original.train(is_training)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images).pooled, original(images))
    for name, value in original.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[name])
    assert (backbone.bn1.num_batches_tracked == 1) == is_training


@torch.no_grad()
def test_regions_are_the_last_map_row_by_row(backbone):
    images = torch.randn(2, 3, 70, 96)
    maps = backbone.eval().pyramid(images)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (256, 18, 24),
        (512, 9, 12),
        (1024, 5, 6),
        (2048, 3, 3),
    ]
    pooled, regions = backbone(images)
    assert torch.equal(regions[:, 5], maps[-1][:, :, 1, 2])
    torch.testing.assert_close(pooled, regions.mean(1))


@torch.no_grad()
def test_last_blocks_are_the_means_of_their_maps(backbone):
    images = torch.randn(2, 3, 64, 64)
    maps = backbone.eval().pyramid(images)  # one block a stage
    expected = torch.cat([x.mean((2, 3)) for x in maps[1:]], dim=-1)
    torch.testing.assert_close(backbone.last_blocks(images, 3), expected)


def test_parameter_names_are_torchvisions():
    with torch.device("meta"):
        names = build(ResNetConfig()).state_dict().keys()
        network = torchvision.models.resnet50(weights=None)
    assert names == {name for name in network.state_dict() if not name.startswith("fc.")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (3, 4, 6)}, r"depths are \(3, 4, 6\)"),
        ({"depths": (3, 4, 6, 0)}, "each at least 1"),
        ({"width": 0}, "width 0"),
        ({"drop_path": 0.1}, "drop_path is 0.1, expected 0"),
    ],
)
def test_impossible_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**change)
