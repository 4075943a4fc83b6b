import pytest
import torch

from esvit.backbones import build
from esvit.config import HeadConfig
from esvit.head import ProjectionHead
from esvit.model import EsViT
from tests.conftest import TINY

HEAD = HeadConfig(num_prototypes=20, hidden_dim=12, bottleneck_dim=6)


@pytest.fixture
def model(tiny_backbone):
    return EsViT(tiny_backbone, ProjectionHead(64, HEAD), ProjectionHead(64, HEAD)).eval()


@pytest.fixture
def views():
    torch.manual_seed(1)
    return [torch.randn(2, 3, *size) for size in [(64, 64), (32, 96), (64, 64), (96, 32)]]


@torch.no_grad()
def test_rows_lie_view_by_view_whatever_shares_a_batch(model, views):
    logits = model.logits(views)
    assert logits.regions_per_view == (4, 3, 4, 3)
    stop = 0
    for number, view in enumerate(views):
        pooled, regions = model.backbone(view)
        rows = slice(2 * number, 2 * number + 2)
        torch.testing.assert_close(logits.view[rows], model.head(pooled))
        start, stop = stop, stop + regions.shape[0] * regions.shape[1]
        of_view = slice(start, stop)
        torch.testing.assert_close(logits.region_features[of_view], regions.flatten(0, 1))
        torch.testing.assert_close(logits.regions[of_view], model.head_dense(regions.flatten(0, 1)))
    assert stop == len(logits.regions)


def test_views_of_equal_size_share_a_batch(model, views, monkeypatch):
    shapes, features = [], model.backbone.features

    def record(batches):
        shapes.append([tuple(images.shape) for images in batches])
        return features(batches)

    monkeypatch.setattr(model.backbone, "features", record)
    model(views)
    assert shapes == [[(4, 3, 64, 64), (2, 3, 32, 96), (2, 3, 96, 32)]]


@torch.no_grad()
def test_projections_make_the_logits(model, views):
    projections, logits = model(views), model.logits(views)
    torch.testing.assert_close(projections.view @ projections.view_prototypes.weight.T, logits.view)
    regions = projections.regions @ projections.region_prototypes.weight.T
    torch.testing.assert_close(regions, logits.regions)
    torch.testing.assert_close(projections.region_features, logits.region_features)
    assert projections.regions_per_view == logits.regions_per_view


def test_model_of_views_alone_has_no_region_outputs(tiny_backbone, views):
    model = EsViT(tiny_backbone, ProjectionHead(64, HEAD), None)
    assert model(views).regions is None
    assert model(views).region_prototypes is None
    assert model.logits(views).regions is None
    assert not [key for key in model.state_dict() if key.startswith("head_dense")]


def test_state_dict_has_the_published_keys_and_loads_back(model):
    state = model.state_dict()
    heads = [f"{name}.{key}" for name in ("head", "head_dense") for key in model.head.state_dict()]
    assert list(state) == [*model.backbone.state_dict(), *heads]
    other = EsViT(build(TINY), ProjectionHead(64, HEAD), ProjectionHead(64, HEAD))
    other.load_state_dict(state)
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key])


def test_state_dict_of_a_wrapped_model_keeps_its_prefix_and_loads_back(model):
    wrapped = torch.nn.Sequential(model)
    state = wrapped.state_dict()
    assert {"0.norm.weight", "0.head.mlp.0.weight"} <= state.keys()
    assert wrapped.load_state_dict(state).missing_keys == []


def test_foreign_key_is_refused_on_loading(model):
    with pytest.raises(RuntimeError, match="extra"):
        model.load_state_dict(model.state_dict() | {"extra": torch.zeros(1)})


def test_gradients_reach_both_heads_and_the_backbone(model, views):
    projections = model(views)
    total = projections.view.square().sum() + projections.region_features.sum()
    total = total + (projections.regions @ projections.region_prototypes.weight.T).sum()
    (total + projections.view_prototypes.weight.sum()).backward()
    without = {name for name, value in model.named_parameters() if value.grad is None}
    assert without == {"head.last_layer.weight_g", "head_dense.last_layer.weight_g"}


@pytest.mark.parametrize("counts", [[], [2, 1]])
def test_unequal_or_no_views_are_refused(model, counts):
    with pytest.raises(ValueError, match="expected equal numbers"):
        model([torch.zeros(count, 3, 32, 32) for count in counts])
