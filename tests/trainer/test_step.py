import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from esvit.backbones import SwinConfig, build
from esvit.config import HeadConfig
from esvit.fused_loss import FusedLoss
from esvit.head import ProjectionHead
from esvit.loss import Loss
from esvit.model import EsViT
from esvit.teacher import start_teacher
from tests.trainer.tiny import snapshot, step, tiny_state, tiny_views
from trainer.optim import make_optimizer
from trainer.schedule import ScheduleConfig, peak_lr
from trainer.step import StepConfig, TrainState, train_step

REFERENCE = Path(__file__).parent.parent / "reference" / "step.npz"
LOSS_CLASSES = [Loss, FusedLoss]


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def recorded_network(settings):
    backbone = build(
        SwinConfig(
            dim=settings["embed_dim"],
            depths=tuple(settings["depths"]),
            num_heads=tuple(settings["num_heads"]),
            window=settings["window_size"],
            mlp_ratio=settings["mlp_ratio"],
            drop_path=0.0,
        )
    )
    head = HeadConfig(
        num_prototypes=settings["out_dim"],
        hidden_dim=settings["hidden_dim"],
        bottleneck_dim=settings["bottleneck_dim"],
        norm_last_layer=settings["norm_last_layer"],
    )
    features = settings["embed_dim"] * 8
    return EsViT(backbone, ProjectionHead(features, head), ProjectionHead(features, head))


def recorded_state(reference, settings, loss_class):
    student, teacher = recorded_network(settings), recorded_network(settings)
    weights = {
        name.removeprefix("init/sd/"): torch.from_numpy(array)
        for name, array in reference.items()
        if name.startswith("init/sd/")
    }
    student.load_state_dict(weights)
    start_teacher(teacher, student)
    return TrainState(
        student=student,
        teacher=teacher,
        optimizer=make_optimizer(student),
        loss=loss_class(settings["out_dim"]),
    )


def recorded_schedule(settings):
    args = settings["args"]
    return ScheduleConfig(
        epochs=args["epochs"],
        steps_per_epoch=settings["niter"],
        lr=peak_lr(args["lr"], args["batch_size_per_gpu"]),
        final_lr=args["min_lr"],
        warmup_epochs=args["warmup_epochs"],
        weight_decay=args["weight_decay"],
        final_weight_decay=args["weight_decay_end"],
        momentum=args["momentum_teacher"],
        teacher_temperature=args["teacher_temp"],
        warmup_teacher_temperature=args["warmup_teacher_temp"],
        warmup_teacher_epochs=args["warmup_teacher_temp_epochs"],
    )


def recorded_views(reference, step):
    crops = [reference[f"crops/step{step}/{crop}"] for crop in range(10)]
    return [
        torch.from_numpy(crop.astype(np.float32)) * float(reference["in_scale"]) for crop in crops
    ]


def without_key_bias(name, tensor):
    """Leave out the key third of a qkv bias, whose true gradient is zero (see reference README)."""
    if not name.endswith("attn.qkv.bias"):
        return tensor
    C = len(tensor) // 3
    return torch.cat([tensor[:C], tensor[2 * C :]])


def assert_state_equals(network, reference, prefix):
    actual = network.state_dict()
    names = [name.removeprefix(prefix) for name in reference if name.startswith(prefix)]
    for name in names:
        expected = torch.from_numpy(reference[prefix + name])
        difference = without_key_bias(name, actual[name]) - without_key_bias(name, expected)
        assert difference.abs().max() <= 1e-5, name
    assert len(names) == len(list(network.parameters()))


def digest(tensor):
    flat = tensor.double().flatten()
    first = torch.zeros(5, dtype=torch.float64)
    first[: min(5, len(flat))] = flat[:5]
    return torch.cat([torch.stack([flat.sum(), flat.abs().sum(), flat.square().sum()]), first])


def assert_digest_equals(state, reference, prefix):
    """Compare sums where no element may differ by more than 1e-5, and the first five elements."""
    networks = {"student": state.student.state_dict(), "teacher": state.teacher.state_dict()}
    names = reference[f"{prefix}/digest/names"]
    for key, values in zip(names, reference[f"{prefix}/digest/values"], strict=True):
        who, name = str(key).split("/", 1)
        parameter, expected = networks[who][name], torch.from_numpy(values).double()
        difference = (digest(parameter) - expected).abs()
        assert difference[3:].max() <= 1e-5, key
        if not name.endswith("attn.qkv.bias"):
            rounding = 1e-6 * expected[:3].abs().max()
            assert difference[:3].max() <= 1e-5 * parameter.numel() + rounding, key
    assert len(names) == 2 * len(list(state.student.parameters()))


@pytest.mark.parametrize("loss_class", LOSS_CLASSES)
def test_four_steps_equal_the_recorded(reference, loss_class):
    settings = json.loads(bytes(reference["config_json"]).decode())
    state = recorded_state(reference, settings, loss_class)
    losses = []
    for number in range(4):
        report = train_step(
            state,
            [recorded_views(reference, number)],
            schedule_config=recorded_schedule(settings),
            config=StepConfig(),
        )
        losses.append(report.total)
        norms = reference[f"grad_norm/step{number}/values"].astype(np.float64)
        assert report.gradient_norm == pytest.approx(math.sqrt((norms**2).sum()), rel=1e-4)
        if number == 1:
            assert_state_equals(state.student, reference, "after_epoch0/student/")
            assert_state_equals(state.teacher, reference, "after_epoch0/teacher/")
            assert_centers_equal(state.loss, reference, "after_epoch0")
    np.testing.assert_allclose(losses, reference["loss"], atol=5e-6, rtol=0)
    assert_digest_equals(state, reference, "after_epoch1")
    assert_centers_equal(state.loss, reference, "after_epoch1")
    assert len(state.optimizer.state) == int(reference["adam/n_state_entries"])


def assert_centers_equal(loss, reference, prefix):
    for name in ("center", "center_grid"):
        expected = torch.from_numpy(reference[f"{prefix}/{name}"])
        torch.testing.assert_close(getattr(loss, name), expected, atol=2e-6, rtol=0)


def test_accumulated_gradients_equal_the_whole_batchs():
    whole, parts = tiny_state(), tiny_state()
    views = tiny_views()
    report = step(whole, [views])
    halves = step(parts, [[view[:2] for view in views], [view[2:] for view in views]])
    assert halves.total == pytest.approx(report.total, rel=1e-6)
    assert halves.gradient_norm == pytest.approx(report.gradient_norm, rel=1e-4)
    torch.testing.assert_close(parts.loss.state_dict(), whole.loss.state_dict())


def test_last_layers_stay_for_the_first_epoch_only():
    state = tiny_state()
    before = state.student.head.last_layer.weight_v.clone()
    step(state, [tiny_views()])
    step(state, [tiny_views()])
    assert torch.equal(state.student.head.last_layer.weight_v, before)
    step(state, [tiny_views()])
    assert not torch.equal(state.student.head.last_layer.weight_v, before)


def test_non_finite_step_changes_nothing_and_is_counted():
    state = tiny_state()
    before = snapshot(state)
    views = tiny_views()
    views[3][0, 0, 0, 0] = math.nan
    for count in (1, 2):
        report = step(state, [views])
        assert not report.is_finite
        assert (state.step, state.num_skipped, state.num_skipped_in_a_row) == (count, count, count)
    for now, then in zip(snapshot(state), before, strict=True):
        assert torch.equal(now, then)
    assert not state.optimizer.state
    assert step(state, [tiny_views()]).is_finite
    assert (state.step, state.num_skipped, state.num_skipped_in_a_row) == (3, 2, 0)


def test_no_gradient_reaches_the_teacher():
    state = tiny_state()
    step(state, [tiny_views()])
    assert all(parameter.grad is None for parameter in state.teacher.parameters())


@pytest.mark.parametrize("loss_class", LOSS_CLASSES)
def test_bf16_keeps_losses_centers_and_weights_in_float32(loss_class):
    exact, autocast = tiny_state(loss_class), tiny_state(loss_class)
    expected = step(exact, [tiny_views()])
    report = step(autocast, [tiny_views()], precision="bf16")
    assert report.total == pytest.approx(expected.total, rel=1e-2)
    assert report.total != expected.total
    assert {tensor.dtype for tensor in autocast.loss.state_dict().values()} == {torch.float32}
    assert {parameter.dtype for parameter in autocast.student.parameters()} == {torch.float32}


def test_clipping_by_one_factor_keeps_the_direction():
    free, clipped = tiny_state(), tiny_state()
    norm = step(free, [tiny_views()], clip="all", clip_norm=1e6).gradient_norm
    assert step(clipped, [tiny_views()], clip="all", clip_norm=norm / 4).gradient_norm == norm
    for ours, theirs in zip(clipped.student.parameters(), free.student.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(4 * ours.grad, theirs.grad, rtol=1e-3, atol=1e-9)


def test_both_losses_take_the_same_steps():
    written, fused = tiny_state(Loss), tiny_state(FusedLoss)
    for _ in range(3):
        of_written, of_fused = step(written, [tiny_views()]), step(fused, [tiny_views()])
        assert of_fused.total == pytest.approx(of_written.total, rel=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("num_global_views", 0, "num_global_views is 0"), ("clip_norm", 0.0, "clip_norm is 0.0")],
)
def test_nonsense_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        StepConfig(**{field: value})
