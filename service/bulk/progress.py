"""How far a bulk run is: a line rewritten on a terminal, else one in the log now and then."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import NamedTuple

from service.bulk.run import Done

logger = logging.getLogger(__name__)

TERMINAL_S, LOG_S = 0.5, 10.0
"""Seconds between two lines."""


class Total(NamedTuple):
    """What a run has done, and how fast."""

    num_images: int
    num_failed: int
    images_per_s: float


def follow(steps: Iterable[Done], num_wanted: int) -> Iterator[Total]:
    """Show how far the steps of a run are, and give the totals after each.

    Args:
        steps: What is done, step by step; a step of nothing says that only now work begins.
        num_wanted: How many pictures there are to do.
    """
    on_terminal = sys.stderr.isatty()
    num_images = num_failed = 0
    started = shown = time.monotonic()
    for step in steps:
        if step.num_images == 0:
            started = shown = time.monotonic()
        num_images += step.num_images
        num_failed += step.num_failed
        now = time.monotonic()
        total = Total(num_images, num_failed, num_images / max(now - started, 1e-9))
        if now - shown >= (TERMINAL_S if on_terminal else LOG_S):
            shown = now
            _show(describe(total, num_wanted), on_terminal=on_terminal)
        yield total
    if on_terminal:
        _show("", on_terminal=True)


def describe(total: Total, num_wanted: int) -> str:
    """Say in one line how far a run is."""
    left_s = (num_wanted - total.num_images) / max(total.images_per_s, 1e-9)
    left = timedelta(seconds=round(left_s))
    failed = f", {total.num_failed:,} failed" if total.num_failed else ""
    return (
        f"{total.num_images:,}/{num_wanted:,} pictures{failed}, "
        f"{total.images_per_s:.1f} images/s, {left} left"
    )


def _show(line: str, *, on_terminal: bool) -> None:
    """Write a line over the last one on a terminal, else to the log."""
    if on_terminal:
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)  # noqa: T201  # a progress line
    else:
        logger.info(line)
