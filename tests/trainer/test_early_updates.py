import math

import pytest
import torch

from tests.trainer.tiny import snapshot, step, tiny_state, tiny_views
from trainer import early_updates
from trainer import step as step_module
from trainer.early_updates import update_early


def moments(state):
    values = state.optimizer.state.values()
    return [tensor for entries in values for tensor in entries.values()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch_bytes", [1, 2**24])
def test_steps_equal_those_with_updates_afterwards_bit_for_bit(monkeypatch, precision, batch_bytes):
    monkeypatch.setattr(early_updates, "BATCH_BYTES", batch_bytes)
    early, late = tiny_state(), tiny_state()
    for number in range(4):  # prototypes are frozen in the first two
        options = {"precision": precision, "clip_norm": 0.01}
        report = step(early, [tiny_views()], **options)
        with monkeypatch.context() as patch:
            patch.setattr(step_module, "_may_update_early", lambda *_: False)
            expected = step(late, [tiny_views()], **options)
        assert report.total == expected.total, number
        assert report.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-6)
        assert all(map(torch.equal, snapshot(early), snapshot(late)))
    assert len(moments(early)) == len(moments(late)) > 0
    for parameter, entries in early.optimizer.state.items():
        name = next(n for n, p in early.student.named_parameters() if p is parameter)
        other = late.optimizer.state[late.student.get_parameter(name)]
        assert all(torch.equal(entries[key], other[key]) for key in other)


def test_no_gradient_outlives_its_update(monkeypatch):
    monkeypatch.setattr(early_updates, "BATCH_BYTES", 1)
    state, held = tiny_state(), []
    make = early_updates._Updates.make

    def watched(self):
        held.append(sum(p.grad is not None for p in state.student.parameters()))
        make(self)

    monkeypatch.setattr(early_updates._Updates, "make", watched)
    step(state, [tiny_views()])
    assert max(held) == 1
    assert all(parameter.grad is None for parameter in state.student.parameters())


def test_from_a_gradient_that_is_not_finite_on_nothing_moves(monkeypatch):
    monkeypatch.setattr(early_updates, "BATCH_BYTES", 1)
    state = tiny_state()
    norm = state.student.backbone.layers[1].blocks[0].norm1.weight
    hook = norm.register_hook(lambda gradient: gradient * math.nan)
    before = {name: p.clone() for name, p in state.student.named_parameters()}
    teacher = [tensor.clone() for tensor in state.teacher.state_dict().values()]
    report = step(state, [tiny_views()], freeze_epochs=0)
    moved = {n for n, p in state.student.named_parameters() if not torch.equal(p, before[n])}
    assert not report.is_finite
    assert (state.num_skipped, state.num_skipped_in_a_row) == (1, 1)
    assert "head.last_layer.weight_v" in moved
    assert not any(name.startswith(("backbone.patch", "backbone.layers.0")) for name in moved)
    assert "backbone.layers.1.blocks.0.norm1.weight" not in moved
    assert all(map(torch.equal, teacher, state.teacher.state_dict().values()))
    hook.remove()
    assert step(state, [tiny_views()]).is_finite
    assert state.num_skipped_in_a_row == 0


@pytest.mark.parametrize(
    ("options", "num_parts"), [({}, 2), ({"clip": "all", "clip_norm": 1.0}, 1)]
)
def test_where_a_gradient_needs_others_they_are_kept(options, num_parts):
    state, views = tiny_state(), tiny_views()
    step(state, [[view[i::num_parts] for view in views] for i in range(num_parts)], **options)
    assert state.student.backbone.norm.weight.grad is not None


def test_after_a_failure_nothing_is_updated_and_no_hook_is_left():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=1.0)

    def fail():
        with update_early(optimizer, clip_norm=1.0, frozen=set()):
            weight.sum().backward()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(weight, torch.ones(3))
    assert not optimizer.state
    weight.grad = None
    weight.sum().backward()
    assert weight.grad is not None
