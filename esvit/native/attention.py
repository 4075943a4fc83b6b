"""Softmax attention inside windows by our kernel (`attention.cpp`).

Shape letters: W windows, N biases, T tokens of a window, D channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit.native.library import address, is_bfloat16, kernel, takes

LANES = 16
"""Numbers that the kernel works on at once; rows of scores are filled up to pairs of so many."""

MOST_TOKENS = 1024


def can_attend(qkv: Tensor) -> bool:
    """Whether the kernel takes queries, keys and values (W, T, 3, heads, D)."""
    if qkv.shape[1] > MOST_TOKENS or qkv.shape[-1] % LANES:
        return False
    return takes(qkv, torch.float32, torch.bfloat16)


def attend(qkv: Tensor, bias: Tensor) -> Tensor:
    """Mix values by softmax(query key^T / sqrt(D) + bias).

    Args:
        qkv: (W, T, 3, heads, D), contiguous, float32 or bfloat16.
        bias: (N, heads, T, T), where N divides W: window w has bias w % N.

    Returns:
        (W, T, heads, D).
    """
    W, T, _, heads, D = qkv.shape
    out = qkv.new_empty(W, T, heads, D)
    filled = _fill_up(bias)
    kernel("esvit_attend", "pppnnnnni")(
        address(qkv), address(filled), address(out), *_sizes(qkv, bias)
    )
    return out


def attend_back(
    grad: Tensor, qkv: Tensor, bias: Tensor, grad_qkv: Tensor, mixed: Tensor | None
) -> Tensor:
    """Write the gradient of queries, keys and values; give the bias's.

    Args:
        grad: (W, T, heads, D) of what `attend` gave, contiguous.
        qkv: As there.
        bias: As there.
        grad_qkv: (W, T, 3, heads, D), where to write it.
        mixed: (W, T, heads, D), where to write what `attend` gave, if that is wanted again.
    """
    threads, pairs = torch.get_num_threads(), bias.shape[0] * bias.shape[1]
    # Where biases are too few to be shared out, each thread has sums of its own for all of them.
    filled = _fill_up(bias)
    is_shared = pairs < 8 * threads and threads * filled.numel() <= qkv.numel()
    sums = filled.new_zeros(threads if is_shared else 1, *filled.shape)
    kernel("esvit_attend_back", "ppppppiinnnnni")(
        *map(address, (qkv, grad, filled, grad_qkv, mixed, sums)),
        int(is_shared),
        threads,
        *_sizes(qkv, bias),
    )
    return sums.sum(0)[..., : bias.shape[-1]].contiguous()


def _fill_up(bias: Tensor) -> Tensor:
    """Lengthen the rows of a bias, in float32, by keys that get no attention."""
    bias = bias.detach().float().contiguous()
    return F.pad(bias, (0, -bias.shape[-1] % (2 * LANES)), value=-torch.inf)


def _sizes(qkv: Tensor, bias: Tensor) -> tuple[int, ...]:
    """W, N, heads, T, D and whether it is bfloat16."""
    W, T, _, heads, D = qkv.shape
    if W % len(bias) or bias.shape[1:] != (heads, T, T):
        raise ValueError(f"biases {tuple(bias.shape)} do not go with windows {tuple(qkv.shape)}")
    return W, len(bias), heads, T, D, is_bfloat16(qkv)
