"""Updates inside the backward pass: a parameter moves as soon as its gradient is complete.

Where each gradient is clipped alone, none has to wait for the others. It is used and let go while
the backward pass goes on, so that a step never holds all of them, which is a quarter of what
weights, teacher and moments take (Lv et al. 2023, Full parameter fine-tuning for large language
models with limited resources, section 3.1). The numbers are those of an update afterwards, bit for
bit: a gradient is complete when the last use of its parameter has been gone back through.
"""

import math
from collections.abc import Generator, Set
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.optim import clip_each_gradient

BATCH_BYTES = 16 * 2**20
"""Of gradients that wait for a common update: a call for each small tensor would take its time."""


@contextmanager
def update_early(
    optimizer: torch.optim.Optimizer, *, clip_norm: float, frozen: Set[nn.Parameter]
) -> Generator[list[Tensor]]:
    """Let the backward pass in this block update parameters and leave no gradients.

    From the first gradient on that is not finite, nothing moves any more; what was updated before
    it stays so. For a CPU: elsewhere each look at a norm would wait for the device.

    Args:
        optimizer: Of parameters that have no gradients yet.
        clip_norm: What each gradient is clipped to.
        frozen: Parameters that stay as they are.

    Yields:
        When the block is done, the norms before clipping, each (number of gradients,) float32.
    """
    updates = _Updates(optimizer, clip_norm, frozen)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    hooks = [parameter.register_post_accumulate_grad_hook(updates.take) for parameter in parameters]
    try:
        yield updates.norms
    finally:
        for hook in hooks:
            hook.remove()
    updates.make()


class _Updates:
    """Those of parameters whose gradients are complete."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, clip_norm: float, frozen: Set[nn.Parameter]
    ) -> None:
        self._optimizer = optimizer
        self._clip_norm = clip_norm
        self._frozen = frozen
        self._waiting: list[nn.Parameter] = []
        self._waiting_bytes = 0
        self._is_finite = True
        self.norms: list[Tensor] = []

    def take(self, parameter: nn.Parameter) -> None:
        """Remember that a gradient is complete."""
        assert parameter.grad is not None
        self._waiting.append(parameter)
        self._waiting_bytes += parameter.grad.nbytes
        if self._waiting_bytes >= BATCH_BYTES:
            self.make()

    def make(self) -> None:
        """Update the parameters that wait, and let go of their gradients."""
        if not self._waiting:
            return
        norms = clip_each_gradient(self._waiting, self._clip_norm)
        self.norms.append(norms)
        self._is_finite = self._is_finite and math.isfinite(float(norms.sum()))
        for parameter in self._frozen & set(self._waiting):
            parameter.grad = None
        if self._is_finite:
            self._optimizer.step()  # moves what has a gradient
        for parameter in self._waiting:
            parameter.grad = None
        self._waiting, self._waiting_bytes = [], 0
