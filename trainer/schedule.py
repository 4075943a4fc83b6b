"""Every value that changes during a run, as a function of the step alone.

So resuming needs no other state than the step. The formulas are those of the published code:
learning rate, weight decay and momentum move with the step, the teacher's temperature with the
epoch.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

from trainer.expect import expect


@dataclass(frozen=True, kw_only=True)
class SchedulePlan:
    """Where the scheduled values start and end; the defaults are the published Swin runs'.

    Attributes:
        epochs: Passes over the data.
        final_lr: What the learning rate falls to, never quite reached.
        warmup_epochs: In which the learning rate rises linearly from 0.
        weight_decay: At the first step.
        final_weight_decay: What it rises to.
        momentum: The teacher's, at the first step, in [0, 1]; rises to 1.
        teacher_temperature: After its warm-up.
        warmup_teacher_temperature: In the first epoch.
        warmup_teacher_epochs: In which the teacher's temperature rises linearly.
    """

    epochs: int = 300
    final_lr: float = 1e-6
    warmup_epochs: int = 10
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    momentum: float = 0.996
    teacher_temperature: float = 0.07
    warmup_teacher_temperature: float = 0.04
    warmup_teacher_epochs: int = 30

    def __post_init__(self) -> None:
        expect(self.epochs >= 1, "1 or more", epochs=self.epochs)
        is_within = 0 <= self.warmup_epochs <= self.epochs
        expect(is_within, f"0 to epochs ({self.epochs})", warmup_epochs=self.warmup_epochs)
        warmup = self.warmup_teacher_epochs
        expect(warmup >= 0, "0 or more", warmup_teacher_epochs=warmup)
        for name in ("final_lr", "weight_decay", "final_weight_decay"):
            expect(getattr(self, name) >= 0, "0 or more", **{name: getattr(self, name)})
        expect(0 <= self.momentum <= 1, "0 to 1", momentum=self.momentum)
        for name in ("teacher_temperature", "warmup_teacher_temperature"):
            expect(getattr(self, name) > 0, "over 0", **{name: getattr(self, name)})


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(SchedulePlan):
    """A plan, and what it takes from the data and the batch.

    Attributes:
        steps_per_epoch: Optimizer updates in a pass.
        lr: Peak learning rate, after `peak_lr`'s rule.
    """

    steps_per_epoch: int
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.steps_per_epoch >= 1, "1 or more", steps_per_epoch=self.steps_per_epoch)

    @property
    def num_steps(self) -> int:
        """Optimizer updates of the whole run."""
        return self.epochs * self.steps_per_epoch


class Scheduled(NamedTuple):
    """The values of one step."""

    lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float


def plan_schedule(plan: SchedulePlan, *, steps_per_epoch: int, lr: float) -> ScheduleConfig:
    """Complete a plan."""
    fields = {field.name: getattr(plan, field.name) for field in dataclasses.fields(SchedulePlan)}
    return ScheduleConfig(**fields, steps_per_epoch=steps_per_epoch, lr=lr)


def peak_lr(base_lr: float, global_batch: int) -> float:
    """Scale a learning rate given for 256 images to the images of one update (linear rule)."""
    return base_lr * global_batch / 256


def at(config: ScheduleConfig, step: int) -> Scheduled:
    """Give the values of a step.

    Args:
        config: The run's schedule.
        step: Optimizer updates done before this one, from 0.

    Raises:
        ValueError: if the run has no such step.
    """
    if not 0 <= step < config.num_steps:
        raise ValueError(f"step is {step}, expected 0 to {config.num_steps - 1}")
    progress = step / config.num_steps
    return Scheduled(
        lr=_lr(config, step),
        weight_decay=_cosine(config.weight_decay, config.final_weight_decay, progress),
        momentum=_cosine(config.momentum, 1.0, progress),
        teacher_temperature=_teacher_temperature(config, step // config.steps_per_epoch),
    )


def _lr(config: ScheduleConfig, step: int) -> float:
    """Rise linearly, then fall along a cosine; the peak comes twice, as published."""
    warmup = config.warmup_epochs * config.steps_per_epoch
    if step < warmup:
        return _linear(0.0, config.lr, step, warmup)
    return _cosine(config.lr, config.final_lr, (step - warmup) / (config.num_steps - warmup))


def _teacher_temperature(config: ScheduleConfig, epoch: int) -> float:
    """Rise linearly, then stay."""
    if epoch >= config.warmup_teacher_epochs:
        return config.teacher_temperature
    return _linear(
        config.warmup_teacher_temperature,
        config.teacher_temperature,
        epoch,
        config.warmup_teacher_epochs,
    )


def _linear(start: float, end: float, index: int, count: int) -> float:
    """Give one of `count` evenly spaced values, of which the last is `end`."""
    return start + (end - start) * index / max(count - 1, 1)


def _cosine(start: float, end: float, progress: float) -> float:
    """Go from start at progress 0 towards end at progress 1 along half a cosine."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))
