"""One training step: what a batch of views does to student, teacher, optimizer and centers.

The networks are anything that maps a list of views to `Projections`; which backbone they hold is
not known here. Everything scheduled is a function of the step, so the state is what it says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esvit.loss import Loss, Losses
from esvit.model import Projections
from esvit.teacher import update_teacher
from trainer import distributed, schedule
from trainer.early_updates import update_early
from trainer.optim import clip_all_gradients, clip_each_gradient, last_layers, set_schedule
from trainer.schedule import ScheduleConfig, Scheduled


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """How a step is done; the defaults are the published.

    Attributes:
        num_global_views: How many of the views, the first ones, the teacher sees.
        precision: Of matrix products; bf16 by autocast. Losses and centers are float32 always.
        clip: Whether each gradient is clipped alone, as published, or all by one factor, which
            keeps the direction of the update.
        clip_norm: The norm a gradient, or all of them together, is clipped to.
        freeze_epochs: In which the prototypes stay as they are drawn.
    """

    num_global_views: int = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    clip: Literal["each", "all"] = "each"
    clip_norm: float = 3.0
    freeze_epochs: int = 1

    def __post_init__(self) -> None:
        if self.num_global_views < 1:
            raise ValueError(f"num_global_views is {self.num_global_views}, expected >= 1")
        if self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}, expected over 0")


@dataclass(kw_only=True)
class TrainState:
    """What a step changes, and all that a resumed run needs besides random states.

    Attributes:
        student: The trained network.
        teacher: Its average; without gradients.
        optimizer: Of the student's parameters, made by `make_optimizer`.
        loss: Holds the centers.
        step: Steps done, skipped ones included.
        num_skipped: Steps that were given up because a gradient was not finite.
        num_skipped_in_a_row: Of these, the ones since the last good step.
    """

    student: nn.Module
    teacher: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    step: int = 0
    num_skipped: int = 0
    num_skipped_in_a_row: int = 0


class StepReport(NamedTuple):
    """What a step did, as numbers of the host.

    Attributes:
        total: The loss; `view` and `region` are its parts before their weights.
        view: Loss of the view task.
        region: Loss of the region task.
        gradient_norm: Of all gradients together, before clipping.
        is_finite: False if the step was skipped.
        scheduled: The values the step was done with.
    """

    total: float
    view: float
    region: float
    gradient_norm: float
    is_finite: bool
    scheduled: Scheduled


def train_step(
    state: TrainState,
    parts: Sequence[Sequence[Tensor]],
    *,
    schedule_config: ScheduleConfig,
    config: StepConfig,
) -> StepReport:
    """Do one optimizer update and what belongs to it, together with all other processes.

    A step whose gradients are not finite changes nothing but the counters, and centers that are
    solved for on each batch. Whether they are is asked of the gradients, which are the same in all
    processes, and together with the numbers of the report: the step waits for the device once.
    Where parameters are updated early and a gradient overflows inside the network, though all
    outputs were finite, the layers behind it have moved already; teacher and centers have not.

    Args:
        state: Changed in place.
        parts: The batch in equal parts, each a list of views (B, 3, H, W); with several,
            gradients are accumulated over them.
        schedule_config: Of the run.
        config: How a step is done.
    """
    values = schedule.at(schedule_config, state.step)
    statistics = _batch_statistics(state.student, state.teacher)
    before = [buffer.clone() for buffer in statistics]
    set_schedule(state.optimizer, lr=values.lr, weight_decay=values.weight_decay)
    state.optimizer.zero_grad(set_to_none=True)
    is_frozen = state.step // schedule_config.steps_per_epoch < config.freeze_epochs
    frozen = set(last_layers(state.student)) if is_frozen else set()
    is_early = _may_update_early(state.student, parts, config)
    if is_early:
        with update_early(state.optimizer, clip_norm=config.clip_norm, frozen=frozen) as found:
            teacher_parts, losses = _accumulate(state, parts, values.teacher_temperature, config)
        norms = torch.cat(found)
    else:
        teacher_parts, losses = _accumulate(state, parts, values.teacher_temperature, config)
        losses = _average_over_processes(state.student, losses)
        norms = _clip(state.student, config)
    report = _report(losses, norms, values)
    state.step += 1
    if not report.is_finite:
        state.num_skipped += 1
        state.num_skipped_in_a_row += 1
        for buffer, value in zip(statistics, before, strict=True):
            buffer.copy_(value)
        return report
    state.num_skipped_in_a_row = 0
    if not is_early:
        for parameter in frozen:
            parameter.grad = None
        state.optimizer.step()
    # Centers first: the teacher's outputs hold its prototypes themselves, which are about to move.
    state.loss.update_centers(*teacher_parts)
    update_teacher(state.teacher, state.student, values.momentum)
    return report


def _may_update_early(
    student: nn.Module, parts: Sequence[Sequence[Tensor]], config: StepConfig
) -> bool:
    """Tell whether no gradient needs another: the norm of all, another pass's, or a process's.

    On other devices a call costs more than the memory is worth there.
    """
    is_on_cpu = next(student.parameters()).device.type == "cpu"
    return config.clip == "each" and len(parts) == distributed.world_size() == 1 and is_on_cpu


def _batch_statistics(*networks: nn.Module) -> list[Tensor]:
    """List what forward passes change besides the step: running statistics of batch norms."""
    modules = (module for network in networks for module in network.modules())
    norms = (module for module in modules if isinstance(module, _BatchNorm))
    return [buffer for norm in norms for buffer in norm.buffers()]


def _accumulate(
    state: TrainState,
    parts: Sequence[Sequence[Tensor]],
    teacher_temperature: float,
    config: StepConfig,
) -> tuple[list[Projections], Losses]:
    """Add up the gradients of all parts; gives the teacher's outputs and the mean losses."""
    teacher_parts, losses = [], []
    for views in parts:
        autocast = torch.autocast(
            views[0].device.type, torch.bfloat16, enabled=config.precision == "bf16"
        )
        with autocast:
            with torch.no_grad():
                teacher_output: Projections = state.teacher(views[: config.num_global_views])
            student_output: Projections = state.student(views)
        with autocast:  # anew: leaving it has freed bfloat16 copies of the weights
            losses.append(
                state.loss.backward(
                    student_output, teacher_output, teacher_temperature, share=1 / len(parts)
                )
            )
        teacher_parts.append(teacher_output)
    return teacher_parts, Losses(*(torch.stack(part).mean() for part in zip(*losses, strict=True)))


def _average_over_processes(student: nn.Module, losses: Losses) -> Losses:
    """Make gradients and losses the mean of all processes'; nothing if alone."""
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    parts = torch.stack(losses)
    distributed.average_([*gradients, parts])
    return Losses(*parts.unbind())


def _clip(student: nn.Module, config: StepConfig) -> Tensor:
    """Clip the gradients; gives their norms before."""
    if config.clip == "each":
        return clip_each_gradient(student.parameters(), config.clip_norm)
    return clip_all_gradients(student.parameters(), config.clip_norm)


def _report(losses: Losses, norms: Tensor, scheduled: Scheduled) -> StepReport:
    """Fetch the step's numbers, all at once."""
    norm = torch.linalg.vector_norm(norms)
    total, view, region, gradient_norm = torch.stack([*losses, norm]).tolist()
    is_finite = math.isfinite(total) and math.isfinite(gradient_norm)
    return StepReport(total, view, region, gradient_norm, is_finite, scheduled)
