import pytest
import torch
from torch import nn

from trainer import run_state


def network(*, dense=False):
    torch.manual_seed(0)
    layers = {"body": nn.Linear(4, 8), "norm": nn.BatchNorm1d(8), "head": nn.Linear(8, 3)}
    if dense:
        layers["head_dense"] = nn.Linear(8, 3)
    return nn.ModuleDict(layers)


def optimizer_of(model):
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}])


def train(model, optimizer, steps, seed):
    torch.manual_seed(seed)
    for _ in range(steps):
        hidden = model["norm"](model["body"](torch.randn(6, 4)))
        loss = sum(model[name](hidden).square().mean() for name in model if "head" in name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def saved(model, optimizer):
    parts = run_state.module_tensors("student", model)
    parts |= run_state.optimizer_tensors(optimizer, model.named_parameters())
    return {name: tensor.detach().clone() for name, tensor in parts.items()}


def test_training_goes_on_bit_for_bit():
    model = network()
    optimizer = optimizer_of(model)
    train(model, optimizer, 3, seed=1)
    parts = saved(model, optimizer)
    train(model, optimizer, 3, seed=2)
    again = network()
    new_optimizer = optimizer_of(again)
    run_state.load_module("student", again, parts)
    run_state.load_optimizer(new_optimizer, again.named_parameters(), parts)
    train(again, new_optimizer, 3, seed=2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert saved(model, optimizer).keys() == saved(again, new_optimizer).keys()


def test_loading_does_not_tie_the_optimizer_to_the_checkpoint():
    model = network()
    optimizer = optimizer_of(model)
    train(model, optimizer, 1, seed=1)
    parts = saved(model, optimizer)
    before = {name: tensor.clone() for name, tensor in parts.items()}
    run_state.load_optimizer(optimizer, model.named_parameters(), parts)
    train(model, optimizer, 2, seed=2)
    assert all(torch.equal(parts[name], before[name]) for name in parts)


def test_the_region_task_can_be_added_to_a_view_only_checkpoint():
    view_only = network()
    optimizer = optimizer_of(view_only)
    train(view_only, optimizer, 2, seed=1)
    parts = saved(view_only, optimizer)
    both = network(dense=True)
    new_optimizer = optimizer_of(both)
    added = ["head_dense.weight", "head_dense.bias"]
    assert run_state.load_known("student", both, parts) == added
    run_state.load_optimizer(new_optimizer, both.named_parameters(), parts)
    assert both["head_dense"].weight not in new_optimizer.state
    moments = new_optimizer.state[both["body"].weight]["exp_avg"]
    assert torch.equal(moments, optimizer.state[view_only["body"].weight]["exp_avg"])
    train(both, new_optimizer, 1, seed=2)


def test_a_parameter_that_never_had_a_gradient_is_fresh():
    model = network(dense=True)
    model["head_dense"].requires_grad_(False)
    optimizer = optimizer_of(model)
    train(model, optimizer, 1, seed=1)
    again = optimizer_of(model)
    run_state.load_optimizer(again, model.named_parameters(), saved(model, optimizer))
    assert model["head_dense"].weight not in again.state
    assert model["body"].weight in again.state


def test_what_does_not_fit_is_refused():
    both, view_only = network(dense=True), network()
    optimizer = optimizer_of(both)
    train(both, optimizer, 1, seed=1)
    parts = saved(both, optimizer)
    with pytest.raises(ValueError, match=r"(?s)does not fit the student.*head_dense"):
        run_state.load_module("student", view_only, parts)
    with pytest.raises(ValueError, match=r"head_dense.*which the student has not"):
        run_state.load_known("student", view_only, parts)
    with pytest.raises(ValueError, match=r"optimizer state of unknown .'head_dense"):
        run_state.load_optimizer(optimizer_of(view_only), view_only.named_parameters(), parts)
    parts["optimizer/body.weight/exp_avg"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"body.weight/exp_avg has shape \(2, 2\)"):
        run_state.load_optimizer(optimizer, both.named_parameters(), parts)
    parts["student/body.weight"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="does not fit the student"):
        run_state.load_known("student", both, parts)
