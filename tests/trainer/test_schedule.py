import json
from pathlib import Path

import numpy as np
import pytest

from trainer.schedule import ScheduleConfig, SchedulePlan, at, peak_lr, plan_schedule

REFERENCE = Path(__file__).parent.parent / "reference" / "schedules.npz"


@pytest.mark.parametrize("variant", ["a", "no_warmup"])
def test_every_step_equals_the_recorded(variant):
    with np.load(REFERENCE, allow_pickle=False) as arrays:
        recorded = {
            name: arrays[f"{variant}/{name}_f64"]
            for name in ("lr", "wd", "momentum", "teacher_temp")
        }
        settings = json.loads(bytes(arrays[f"{variant}/config_json"]).decode())
    args = settings["args"]
    config = ScheduleConfig(
        epochs=args["epochs"],
        steps_per_epoch=settings["niter"],
        lr=peak_lr(args["lr"], args["batch_size_per_gpu"] * settings["world_size"]),
        final_lr=args["min_lr"],
        warmup_epochs=args["warmup_epochs"],
        weight_decay=args["weight_decay"],
        final_weight_decay=args["weight_decay_end"],
        momentum=args["momentum_teacher"],
        teacher_temperature=args["teacher_temp"],
        warmup_teacher_temperature=args["warmup_teacher_temp"],
        warmup_teacher_epochs=args["warmup_teacher_temp_epochs"],
    )
    values = [at(config, step) for step in range(config.num_steps)]
    np.testing.assert_allclose([v.lr for v in values], recorded["lr"], atol=1e-12, rtol=0)
    np.testing.assert_allclose([v.weight_decay for v in values], recorded["wd"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(
        [v.momentum for v in values], recorded["momentum"], atol=1e-12, rtol=0
    )
    np.testing.assert_allclose(
        [v.teacher_temperature for v in values],
        np.repeat(recorded["teacher_temp"], config.steps_per_epoch),
        atol=1e-12,
        rtol=0,
    )


def test_warmup_starts_at_zero_and_the_peak_comes_twice():
    config = ScheduleConfig(epochs=3, steps_per_epoch=4, lr=1.0, warmup_epochs=1)
    rates = [at(config, step).lr for step in range(6)]
    assert rates[0] == 0.0
    assert rates[3] == rates[4] == 1.0
    assert rates[5] < 1.0


def test_linear_rule():
    assert peak_lr(5e-4, 512) == 1e-3


@pytest.mark.parametrize("step", [-1, 12])
def test_step_outside_the_run_is_refused(step):
    config = ScheduleConfig(epochs=3, steps_per_epoch=4, warmup_epochs=1)
    with pytest.raises(ValueError, match=f"step is {step}, expected 0 to 11"):
        at(config, step)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs is 0"),
        ("steps_per_epoch", 0, "steps_per_epoch is 0"),
        ("warmup_epochs", 301, r"warmup_epochs is 301, expected 0 to epochs \(300\)"),
        ("warmup_teacher_epochs", -1, "warmup_teacher_epochs is -1"),
        ("momentum", 1.5, "momentum is 1.5"),
        ("weight_decay", -1.0, "^weight_decay is -1.0, expected 0 or more"),
        ("final_lr", float("nan"), "final_lr is nan"),
        ("teacher_temperature", 0.0, "^teacher_temperature is 0.0, expected over 0"),
    ],
)
def test_nonsense_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**{"steps_per_epoch": 4, field: value})


def test_plan_keeps_its_fields_when_it_is_completed():
    plan = SchedulePlan(epochs=7, warmup_epochs=2, momentum=0.9)
    config = plan_schedule(plan, steps_per_epoch=3, lr=0.5)
    assert config == ScheduleConfig(
        epochs=7, warmup_epochs=2, momentum=0.9, steps_per_epoch=3, lr=0.5
    )
