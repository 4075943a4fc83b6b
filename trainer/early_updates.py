"""Updates inside the backward pass: a parameter moves as soon as its gradient is complete.

Where each gradient is clipped alone, none has to wait for the others. It is used and let go while
the backward pass goes on, so that a step never holds all of them, which is a quarter of what
weights, teacher and moments take (Lv et al. 2023, Full parameter fine-tuning for large language
models with limited resources, section 3.1). The numbers are those of an update afterwards, bit for
bit: a gradient is complete when the last use of its parameter has been gone back through.
"""

import math
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainer.optim import clip_each_gradient

BATCH_BYTES = 16 * 2**20
"""Of gradients that wait for a common update: a call for each small tensor would take its time."""


class EarlyUpdates:
    """While entered, backward passes update parameters and leave no gradients.

    From the first gradient on that is not finite, nothing moves any more; what was updated before
    it stays so.

    Attributes:
        norms: Of all gradients before clipping, each (number of gradients,) float32.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, clip_norm: float, frozen: set[nn.Parameter]
    ) -> None:
        """Update the optimizer's parameters; on a CPU, where asking for a norm waits for nothing.

        Args:
            optimizer: Of parameters that have no gradients yet.
            clip_norm: What each gradient is clipped to.
            frozen: Parameters that stay as they are.
        """
        self._optimizer = optimizer
        self._clip_norm = clip_norm
        self._frozen = frozen
        self._waiting: list[nn.Parameter] = []
        self._waiting_bytes = 0
        self._hooks: list[RemovableHandle] = []
        self._is_finite = True
        self.norms: list[Tensor] = []

    def __enter__(self) -> Self:
        """Wait for gradients."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                hook = parameter.register_post_accumulate_grad_hook(self._take)
                self._hooks.append(hook)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Update what waits still, and wait for no more."""
        for hook in self._hooks:
            hook.remove()
        if error is None:
            self._update()

    def _take(self, parameter: nn.Parameter) -> None:
        """Remember that a gradient is complete."""
        assert parameter.grad is not None
        self._waiting.append(parameter)
        self._waiting_bytes += parameter.grad.nbytes
        if self._waiting_bytes >= BATCH_BYTES:
            self._update()

    def _update(self) -> None:
        """Update the parameters that wait, and let go of their gradients."""
        if not self._waiting:
            return
        norms = clip_each_gradient(self._waiting, self._clip_norm)
        self.norms.append(norms)
        self._is_finite = self._is_finite and math.isfinite(float(norms.sum()))
        for parameter in self._frozen.intersection(self._waiting):
            parameter.grad = None
        if self._is_finite:
            self._optimizer.step()  # moves what has a gradient
        for parameter in self._waiting:
            parameter.grad = None
        self._waiting, self._waiting_bytes = [], 0
