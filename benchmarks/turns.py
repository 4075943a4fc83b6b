"""Processes that take turns, so that what slows the machine for a while slows all of them.

Each has memory of its own, that can be told apart, and does nothing between its turns.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple
from unittest import mock


class Work(NamedTuple):
    """What a process does.

    Attributes:
        turn: What it does when it is its turn, and what is timed.
        peak_mb: Tells, in the end, how much memory it has used.
    """

    turn: Callable[[], object]
    peak_mb: Callable[[], float]


class Case(NamedTuple):
    """A process to be.

    Attributes:
        prepare: Called in the process once, with all that does not count.
        preload: A library whose functions come before others', or None.
    """

    prepare: Callable[[], Work]
    preload: str | None = None


class Result(NamedTuple):
    """What was measured of a process.

    Attributes:
        seconds: Of each of its turns.
        peak_mb: The memory it has used.
    """

    seconds: list[float]
    peak_mb: float

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)


def times_as_fast(first: Result, second: Result) -> list[float]:
    """Say how many times as fast as the first the second was in each round, in ascending order."""
    return sorted(a / b for a, b in zip(first.seconds, second.seconds, strict=True))


def run_in_turns(cases: Sequence[Case], repetitions: int) -> list[Result]:
    """Start a process for each case and give each a turn, one after the other, again and again.

    Raises:
        EOFError: If a process ends early; it has said why on standard error.
    """
    with ExitStack() as stack:
        connections = [_start(case, stack) for case in cases]
        rounds = [
            [_ask(connection, go_on=True) for connection in connections] for _ in range(repetitions)
        ]
        peaks = [_ask(connection, go_on=False) for connection in connections]
    return [Result(list(s), peak) for s, peak in zip(zip(*rounds, strict=True), peaks, strict=True)]


def status_mb(field: str) -> float:
    """Read a field of this process's memory, in megabytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/self/status has no {field}")


def _start(case: Case, stack: ExitStack) -> Connection:
    """Start a process, to be ended with the stack, and wait until it is ready."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, case.prepare), daemon=True)
    preload = {"LD_PRELOAD": case.preload} if case.preload else {}
    with mock.patch.dict(os.environ, preload):
        process.start()
    its.close()
    stack.callback(process.join)
    stack.callback(process.kill)
    ours.recv()
    return ours


def _ask(connection: Connection, *, go_on: bool) -> float:
    """Give a process its turn or let it end; gives what it answers."""
    connection.send(go_on)
    answer: float = connection.recv()
    return answer


def _serve(connection: Connection, prepare: Callable[[], Work]) -> None:
    """Be such a process."""
    work = prepare()
    connection.send("ready")
    while connection.recv():
        start = time.perf_counter()
        work.turn()
        connection.send(time.perf_counter() - start)
    connection.send(work.peak_mb())
