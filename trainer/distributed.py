"""torchrun's process group: gloo on CPUs, NCCL on CUDA; alone, everything here costs nothing.

Under torchrun each process finds its place in the environment (RANK, LOCAL_RANK, WORLD_SIZE).
Control words (stop, agreement on a number) travel over gloo even where tensors use NCCL, so that
asking for them never waits for a GPU.
"""

import importlib
import os
import signal
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

EXIT_CODES = {
    signal.SIGTERM: 143,
    signal.SIGINT: 130,
    signal.SIGUSR1: 75,
}
"""How a run that was asked to stop ends, after it has saved: 128 + signal for SIGTERM and SIGINT;
75 (EX_TEMPFAIL, "try again") for SIGUSR1, which a scheduler sends before time is up, so that the
job script can requeue on that status."""


BUCKET_BYTES = 25 * 2**20
"""Of gradients that travel as one message."""

_POLL_S = 0.02


@contextmanager
def process_group(*, may_use_cuda: bool = True, timeout_s: float = 1800.0) -> Iterator[None]:
    """Join torchrun's processes for the time of the block; without torchrun, do nothing.

    After it no thread of the group is left: one that lets go of a tensor while Python ends aborts
    the process.

    Args:
        may_use_cuda: Whether each process takes its CUDA device, where there are some.
        timeout_s: After so long without the others a collective call raises.

    Raises:
        ValueError: if there are more processes on this machine than CUDA devices.
    """
    if "WORLD_SIZE" not in os.environ or not dist.is_available():
        yield
        return
    backend = "gloo"
    if may_use_cuda and torch.cuda.is_available():
        device, count = local_device(), torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise ValueError(f"process {device.index} of this machine has no GPU: it has {count}")
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=timeout_s)
    store, number, size = next(rendezvous("env://", timeout=timeout))
    store = unused_part(store, number, size, timeout_s=timeout_s)
    importlib.import_module("torch.distributed.nn")  # later, its defaults would hold the group
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def unused_part(store: Store, number: int, size: int, *, timeout_s: float) -> Store:
    """Agree on a part of the store that no earlier start of the processes has written to.

    When torchrun restarts its processes it keeps the store, in which there are still the addresses
    of the dead: a process that is quicker than the one whose address it looks up calls a dead one.
    Each process says hello with a word of its own, and is answered under that word.

    Raises:
        TimeoutError: if some process does not come.
    """
    if number > 0:
        word = uuid.uuid4().hex
        store.set(f"hello/{number}", word)
        part = store.get(f"answer/{word}").decode()
        store.set(f"{part}/joined/{number}", "")
        return PrefixStore(part, store)
    part, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
    missing = set(range(1, size))
    while missing:
        for other in sorted(missing):
            if store.check([f"hello/{other}"]):  # perhaps an earlier start's, then nobody listens
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", part)
            if store.check([f"{part}/joined/{other}"]):
                missing.discard(other)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(missing)} have not come in {timeout_s:.0f} s")
        time.sleep(_POLL_S)
    return PrefixStore(part, store)


def rank() -> int:
    """Give the number of this process, 0 when alone."""
    return dist.get_rank() if _is_joined() else 0


def world_size() -> int:
    """Give the number of processes, 1 when alone."""
    return dist.get_world_size() if _is_joined() else 1


def is_main() -> bool:
    """Tell whether this process is the one that writes and prints."""
    return rank() == 0


def is_first_of_machine() -> bool:
    """Tell whether this process is the main one of those on its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def local_device() -> torch.device:
    """Give this process's device: its own CUDA device where there are some, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Give the sum of a tensor over all processes; any shape, no gradient."""
    total = tensor.detach().clone()
    if _is_joined():
        dist.all_reduce(total)
    return total


def average_(tensors: list[Tensor]) -> None:
    """Replace each of a list of tensors, gradients for instance, by its mean over all processes.

    Small tensors travel together, large ones as they are; all are under way before one is awaited.
    """
    if not _is_joined():
        return
    under_way = []
    for bucket in _buckets(tensors):
        packed = bucket[0] if len(bucket) == 1 else torch.cat([x.flatten() for x in bucket])
        under_way.append((bucket, packed, dist.all_reduce(packed, async_op=True)))
    for bucket, packed, work in under_way:
        work.wait()
        packed.div_(world_size())
        if len(bucket) > 1:
            parts = torch.split(packed, [x.numel() for x in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Put neighbours of one dtype and device together, up to `BUCKET_BYTES`."""
    buckets: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        last = buckets[-1][0] if buckets else None
        fits = last is not None and (last.dtype, last.device) == (tensor.dtype, tensor.device)
        if not fits or size + tensor.nbytes > BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.nbytes
    return buckets


def largest(number: int) -> int:
    """Give the largest of the numbers that the processes bring; all must call."""
    if not _is_joined():
        return number
    word = torch.tensor([number])
    dist.all_reduce(word, dist.ReduceOp.MAX)
    return int(word)


def barrier() -> None:
    """Wait until all processes are here."""
    largest(0)


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process go through the block before the others: they find what it has made.

    An error in the main process does not leave the others waiting.
    """
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


def gather_states(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Collect small CPU tensors of all processes on all, each name below `rank-<number>/`."""
    if not _is_joined():
        return {f"rank-0/{name}": tensor for name, tensor in tensors.items()}
    collected: list[dict[str, Tensor]] = [{} for _ in range(world_size())]
    dist.all_gather_object(collected, dict(tensors))
    return {
        f"rank-{number}/{name}": tensor
        for number, states in enumerate(collected)
        for name, tensor in states.items()
    }


class StopRequest:
    """Notes SIGTERM, SIGINT and SIGUSR1 for the end of the step, for all processes together.

    As a context manager it puts the former handlers back. A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self._received = 0
        self._former: dict[signal.Signals, Any] = {}  # Any: what signal.signal returns

    def __enter__(self) -> "StopRequest":
        self._former = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def exit_code(self) -> int | None:
        """Give the status to end with if any process was asked to stop, else None.

        All processes must call, at the same step, and all get the same answer.
        """
        received = largest(self._received)
        return EXIT_CODES[signal.Signals(received)] if received else None


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
