"""Results that a backward pass makes again instead of keeping them.

A linear layer keeps its input, for the gradient of its weight. Where that input comes out of a
layer norm, which keeps its own input as well, it can be made again from that, and no matrix product
is repeated. What is worth a product is made again in `lean_attention.py` and `lean_mlp.py`.

Shape letter: C channels.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

_is_on = ContextVar("remake_is_on", default=True)

WORTH_KEEPING = 192
"""Channels from which on products are kept in float32, where they are most of a step.

To make a value again takes a multiplication a channel. Of what a Swin-T's attention and MLPs
multiply first, four tenths of the values have fewer channels, but a seventh of the multiplications.
"""


def remakes() -> bool:
    """Whether anything is made again here: a compiler chooses by itself what it keeps."""
    return not torch.compiler.is_compiling() and _is_on.get()


def is_worth_keeping(x: Tensor) -> bool:
    """Whether a linear layer's result for x (..., C) costs more to make again than to keep."""
    return x.dtype == torch.float32 and x.shape[-1] >= WORTH_KEEPING


def use_and_remake(
    make: Callable[[Tensor], Tensor], x: Tensor, use: Callable[[Tensor], Tensor]
) -> Tensor:
    """Give use(make(x)); where its backward pass asks for make(x), it is made again from x.

    Args:
        make: Cheap and without chance.
        x: Kept in place of make(x).
        use: Keeps its input as it is or reshaped, as `nn.Linear` does.
    """
    if not remakes():
        return use(make(x))
    device = x.device.type
    dtype, is_autocast = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)

    def make_input() -> Tensor:
        """Make it in the type that a layer wants: autocast's own copy would be kept unseen."""
        made = make(x)
        return made.to(dtype) if is_autocast else made

    made = make_input()
    if not made.requires_grad:
        return use(made)
    address, size = made.data_ptr(), made.numel()

    def pack(kept: Tensor) -> Tensor | torch.Size:
        is_made = kept.data_ptr() == address and kept.numel() == size
        return kept.shape if is_made else kept

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad(), torch.autocast(device, dtype, enabled=is_autocast):
            return make_input().view(kept)

    with saved_tensors_hooks(pack, unpack):
        return use(made)


@contextmanager
def keep_all() -> Generator[None]:
    """Keep everything in this block: what goes on here is all made again anyway."""
    token = _is_on.set(False)
    try:
        yield
    finally:
        _is_on.reset(token)
