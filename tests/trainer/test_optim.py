import copy

import pytest
import torch
from torch import nn

from trainer.optim import (
    clip_all_gradients,
    clip_each_gradient,
    last_layers,
    make_optimizer,
    param_groups,
    set_schedule,
)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.relative_position_bias_table = nn.Parameter(torch.ones(9, 2))
        self.last_layer = nn.Module()
        self.last_layer.weight_g = nn.Parameter(torch.ones(5, 1))
        self.last_layer.weight_v = nn.Parameter(torch.ones(5, 4))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def names(model, group):
    of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [of[id(parameter)] for parameter in group["params"]]


def test_groups_are_the_published():
    model = Network()
    decayed, plain = param_groups(model)
    assert names(model, decayed) == [
        "relative_position_bias_table",
        "proj.weight",
        "last_layer.weight_g",
        "last_layer.weight_v",
    ]
    assert names(model, plain) == ["proj.bias", "norm.weight", "norm.bias"]
    assert plain["weight_decay"] == 0.0


def test_tables_and_lengths_can_be_spared():
    model = Network()
    decayed, plain = param_groups(model, decay_tables=False)
    assert names(model, decayed) == ["proj.weight", "last_layer.weight_v"]
    assert "last_layer.weight_g" in names(model, plain)


def test_schedule_decays_the_first_group_only():
    optimizer = make_optimizer(Network())
    set_schedule(optimizer, lr=0.5, weight_decay=0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]


def parameters_with_gradients(*gradients):
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return [*parameters, nn.Parameter(torch.zeros(1))]


def test_each_gradient_is_clipped_alone():
    parameters = parameters_with_gradients([30.0, 40.0], [0.3, 0.4])
    norms = clip_each_gradient(parameters, 5.0)
    torch.testing.assert_close(norms, torch.tensor([50.0, 0.5]))
    torch.testing.assert_close(parameters[0].grad, torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.3, 0.4]), rtol=0, atol=0)
    assert parameters[2].grad is None


def test_all_gradients_share_a_factor_that_equals_torchs():
    parameters = parameters_with_gradients([30.0, 40.0], [0.3, 0.4])
    expected = copy.deepcopy(parameters)
    for ours, theirs in zip(parameters, expected, strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.clone()
    torch.nn.utils.clip_grad_norm_(expected, 5.0)
    norms = clip_all_gradients(parameters, 5.0)
    torch.testing.assert_close(norms, torch.tensor([50.0, 0.5]))
    for ours, theirs in zip(parameters[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("clip", [clip_each_gradient, clip_all_gradients])
def test_small_gradients_stay(clip):
    parameters = parameters_with_gradients([0.3, 0.4])
    clip(parameters, 5.0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.3, 0.4]), rtol=0, atol=0)


def test_frozen_last_layer_neither_moves_nor_decays():
    model = Network()
    optimizer = make_optimizer(model)
    set_schedule(optimizer, lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert len(last_layers(model)) == 2
    for parameter in last_layers(model):
        parameter.grad = None
    optimizer.step()
    assert torch.equal(model.last_layer.weight_v, torch.ones(5, 4))
    assert torch.equal(model.last_layer.weight_g, torch.ones(5, 1))
    assert not torch.equal(model.norm.weight, torch.ones(4))
