from dataclasses import replace

import numpy as np
import pytest
import torch

from esvit.config import HeadConfig
from esvit.head import ProjectionHead

SMALL = HeadConfig(num_prototypes=64, hidden_dim=64, bottleneck_dim=32)
VARIANTS = {
    "norm_true": SMALL,
    "norm_false": replace(SMALL, norm_last_layer=False),
    "layers1": replace(SMALL, num_layers=1),
}


@pytest.fixture
def arrays(reference):
    return np.load(reference / "dino_head.npz", allow_pickle=False)


def load(arrays, variant):
    head = ProjectionHead(24, VARIANTS[variant])
    prefix = f"{variant}/sd/"
    keys = [key for key in arrays if key.startswith(prefix)]
    head.load_state_dict({key[len(prefix) :]: torch.from_numpy(arrays[key]) for key in keys})
    return head


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_equal_the_reference(arrays, variant):
    head = load(arrays, variant)
    x = torch.from_numpy(arrays[f"{variant}/x"]).requires_grad_()
    y = head(x)
    y.backward(torch.from_numpy(arrays[f"{variant}/cotangent"]))
    np.testing.assert_allclose(y.detach(), arrays[f"{variant}/y"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(x.grad, arrays[f"{variant}/grad_x"], atol=1e-5, rtol=0)
    for name, parameter in head.named_parameters():
        assert parameter.requires_grad == arrays[f"{variant}/requires_grad/{name}"]
        if parameter.requires_grad:
            expected = arrays[f"{variant}/grad/{name}"]
            np.testing.assert_allclose(parameter.grad, expected, atol=1e-5, rtol=0)


def test_initialisation_equals_the_reference(arrays):
    torch.manual_seed(0)
    head = ProjectionHead(96, HeadConfig(num_prototypes=2048))
    for name, parameter in head.named_parameters():
        mean, std, *_ = arrays[f"init_stats/{name}"]
        assert list(parameter.shape) == arrays[f"init_shape/{name}"].tolist()
        assert parameter.mean().item() == pytest.approx(mean, abs=2e-4)
        assert parameter.std().item() == pytest.approx(std, abs=2e-4)


def test_logits_are_bottleneck_times_prototypes(arrays):
    head = load(arrays, "norm_false")
    x = torch.from_numpy(arrays["norm_false/x"])
    torch.testing.assert_close(head(x), head.bottleneck(x) @ head.prototypes.weight.T)
    torch.testing.assert_close(head.bottleneck(x).norm(dim=-1), torch.ones(len(x)))


def test_prototypes_have_the_length_of_their_gain(arrays):
    head = load(arrays, "norm_false")
    gains = head.last_layer.weight_g[:, 0].abs()
    torch.testing.assert_close(head.prototypes.weight.norm(dim=1), gains)


def test_batch_norm_follows_each_hidden_layer():
    torch.manual_seed(0)
    head = ProjectionHead(24, replace(SMALL, use_bn=True))
    kinds = [type(layer).__name__ for layer in head.mlp]
    assert kinds == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]
    assert head(torch.randn(5, 24)).shape == (5, 64)
