"""What a run tells while it goes on: metrics as JSON lines, TensorBoard, a progress bar or a log.

Metrics are one JSON object a line in `metrics.jsonl`, so that a killed run loses none and any tool
reads them; a resumed run drops the lines after its checkpoint and goes on.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from esvit.files import write_text
from trainer.step import StepReport

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SKIPPED = "skipped.jsonl"
TENSORBOARD = "tensorboard"

_SHOWN = ("loss", "lr", "images_per_s", "data_wait_share", "teacher_entropy", "kl", "feature_std")


def set_up_logging(*, is_main: bool) -> Console:
    """Send log lines to standard error, past a progress bar on a terminal; others only warn."""
    console = Console(stderr=True, highlight=False)
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler = RichHandler(console=console, show_path=False) if console.is_terminal else lines
    level = logging.INFO if is_main else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler], force=True)
    return console


@dataclass
class Meter:
    """Averages since the last reading.

    Attributes:
        batch: Images a step over all processes.
    """

    batch: int
    _reports: list[StepReport] = field(default_factory=list)
    _num_steps: int = 0
    _waited_s: float = 0.0
    _started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Count the time of the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    def add(self, report: StepReport) -> None:
        """Count a step."""
        self._num_steps += 1
        if report.is_finite:
            self._reports.append(report)

    def read(self) -> dict[str, float]:
        """Give the means of the good steps, speed and share of waiting, and begin anew."""
        elapsed = time.perf_counter() - self._started
        means = {
            "loss": _mean([report.total for report in self._reports]),
            "loss_view": _mean([report.view for report in self._reports]),
            "loss_region": _mean([report.region for report in self._reports]),
            "gradient_norm": _mean([report.gradient_norm for report in self._reports]),
            "images_per_s": self.batch * self._num_steps / elapsed,
            "data_wait_share": self._waited_s / elapsed,
        }
        self.restart()
        return means

    def restart(self) -> None:
        """Forget what was counted, as after a pause that is no training."""
        self._reports, self._num_steps, self._waited_s = [], 0, 0.0
        self._started = time.perf_counter()


class Monitor:
    """Writes and shows metrics; does nothing in processes that are not the main one."""

    def __init__(
        self, folder: Path, console: Console | None, *, first_step: int, num_steps: int,
        tensorboard: bool,
    ) -> None:  # fmt: skip
        """Open the files.

        Args:
            folder: Of the run.
            console: Where to show progress; None in processes that do not write.
            first_step: At which this start begins; later lines of an earlier one are dropped.
            num_steps: Of the run.
            tensorboard: Whether to write for TensorBoard too.
        """
        self._path = folder / METRICS
        self._console = console
        self._first_step, self._num_steps = first_step, num_steps
        self._started = time.perf_counter()
        self._writer = _open_tensorboard(folder, first_step) if tensorboard and console else None
        self._bar = _progress_bar(console)
        self._task = self._bar.add_task("", total=num_steps, completed=first_step, loss=math.nan)
        if console:
            drop_later_lines(self._path, first_step)

    def __enter__(self) -> "Monitor":
        if self._console and self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar.live.is_started:
            self._bar.stop()
        with _surviving("TensorBoard"):
            if self._writer is not None:
                self._writer.close()

    def advance(self, step: int, loss: float) -> None:
        """Show that so many steps are done."""
        self._bar.update(self._task, completed=step, loss=loss)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics as of a step, and log the most telling ones."""
        if self._console is None:
            return
        line = {"step": step, "time": round(time.time(), 3), **metrics}
        append_line(self._path, {name: _finite(value) for name, value in line.items()})
        with _surviving("TensorBoard"):
            if self._writer is not None:
                for name, value in metrics.items():
                    self._writer.add_scalar(name, value, step)
        shown = [f"{name} {metrics[name]:.4g}" for name in _SHOWN if name in metrics]
        others = [f"{name} {metrics[name]:.4g}" for name in metrics if name.startswith("eval_")]
        logger.info(
            "step %d/%d  %s  left %s", step, self._num_steps, "  ".join(shown + others),
            self._time_left(step),
        )  # fmt: skip

    def _time_left(self, step: int) -> timedelta:
        """Estimate from the pace of this start."""
        per_step = (time.perf_counter() - self._started) / max(step - self._first_step, 1)
        return timedelta(seconds=round(per_step * (self._num_steps - step)))


def note_skipped(folder: Path, step: int, report: StepReport, names: Sequence[str]) -> None:
    """Write down a step that was not finite, with the images of this process in it."""
    line = {"step": step, "loss": _finite(report.total), "images": list(names)}
    append_line(folder / SKIPPED, line)


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add a line of JSON to a file, whole or not at all."""
    with _surviving(path.name):
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a") as file:
                file.write(json.dumps(values) + "\n")
        except OSError:
            if path.exists():
                os.truncate(path, size)
            raise


@contextmanager
def _surviving(what: str) -> Generator[None]:
    """Go on when the disk is full: what a run tells is worth less than the run."""
    try:
        yield
    except OSError as error:
        logger.error("%s not written: %s", what, error)


def drop_later_lines(path: Path, step: int) -> None:
    """Keep of a metrics file what an earlier start wrote up to a step."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):  # cut by a kill
            continue
    write_text(path, "\n".join(kept)) if kept else path.unlink()


def _open_tensorboard(folder: Path, first_step: int) -> Any:  # tensorboard is an extra
    """Open TensorBoard's writer.

    Raises:
        ValueError: if tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "monitor.tensorboard needs the package: pip install tensorboard"
        ) from error
    return SummaryWriter(folder / TENSORBOARD, purge_step=first_step + 1)


def _progress_bar(console: Console | None) -> Progress:
    """Make the bar that a terminal shows."""
    return Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        console=console or Console(file=sys.stderr),
        transient=True,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _finite(value: float) -> float | None:
    """Give null for what JSON has no number for."""
    return value if math.isfinite(value) else None
