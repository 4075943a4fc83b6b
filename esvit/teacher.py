"""The teacher: an exponential moving average of the student (DINO, section 3.1)."""

import torch
from torch import Tensor, nn


def start_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Give the teacher the student's state, and never a gradient.

    Args:
        teacher: Changed in place; of the same architecture, but without stochastic depth.
        student: Of the same parameters and buffers.
    """
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's.

    As published, parameters only, frozen ones included: buffers, such as the running statistics
    of a batch norm, are the teacher's own.

    Args:
        teacher: Changed in place.
        student: Of the same parameters in the same order.
        momentum: Share of the teacher that stays, in [0, 1].
    """
    averages: list[Tensor] = list(teacher.parameters())
    news: list[Tensor] = list(student.parameters())
    torch._foreach_lerp_(averages, news, 1 - momentum)
