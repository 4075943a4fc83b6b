"""How far an evaluation is: a bar on a terminal, else a line of the log every half minute."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

_SAY_EVERY_S = 30.0


@contextmanager
def show_progress(
    console: Console, name: str, total: int, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """Show how far the work of the block is.

    Args:
        console: Where.
        name: What of.
        total: How many there are to be.
        unit: Of what.

    Yields:
        A function that is told how many more are done.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    task = bar.add_task(name, total=total)
    said, done = time.monotonic(), 0

    def advance(count: int) -> None:
        nonlocal said, done
        done += count
        bar.advance(task, count)
        if not console.is_terminal and time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            logger.info("%s: %d of %d %s", name, done, total, unit)

    if console.is_terminal and total:
        with bar:
            yield advance
    else:
        yield advance
