"""Command: images -> a pretrained teacher.

`python -m trainer.pretrain swin-tiny-w7 --data.path DIR --out RUN`, alone on a CPU or a GPU, or
under torchrun on many. The subcommand is a recipe, flags override its fields. A run that was
stopped or killed goes on with the same command, where its last checkpoint was.

Exit codes: 0 finished; 1 stopped by a fault that it names; 2 the request cannot be met; after
saving, 143 on SIGTERM, 130 on SIGINT, and 75 on SIGUSR1, for a job script to requeue.
"""

import contextlib
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor

from esvit.native.library import kind
from esvit.weights import write_safetensors
from trainer import distributed
from trainer.command_line import parse
from trainer.config import PretrainConfig
from trainer.data.images import TooManyBadImages
from trainer.data.loader import Batch, PixelFinish
from trainer.distributed import StopRequest
from trainer.health import HealthCheck
from trainer.memory import ask_for_huge_pages, keep_freed_memory, map_large_blocks
from trainer.monitor import SKIPPED, Meter, Monitor, note_skipped, set_up_logging
from trainer.networks import speed_up, teacher_weights
from trainer.online import Examiner
from trainer.pixel_ops import PixelParameters
from trainer.run import Run, claim_folder, prepare, save
from trainer.step import StepReport, train_step

logger = logging.getLogger(__name__)

TEACHER = "teacher.safetensors"
STEP_STREAM = 4
"""First word of the seed of what a step draws; the loader has 1 to 3."""


class TooManySkipped(RuntimeError):
    """Gradients were not finite too often in a row."""


def train(run: Run, monitor: Monitor, examiner: Examiner) -> int:
    """Train to the end or until asked to stop, and give the exit code.

    Raises:
        TooManySkipped: if gradients are not finite too often in a row.
        TooManyBadImages: if more images cannot be read than the run accepts.
        RuntimeError: if a loader's worker dies, or another process.
    """
    state, config = run.state, run.config
    meter, check = Meter(config.optim.batch), HealthCheck(config.crops.num_global)
    saved_at, first = time.monotonic(), state.step
    batches = run.feed.batches(state.step)
    is_saved = True
    with contextlib.closing(batches), monitor, StopRequest() as stop:
        while state.step < run.schedule.num_steps:
            with meter.waiting():
                batch = next(batches)
            parts = to_parts(run, batch)
            seed_step(config, state.step)
            report = train_step(state, parts, schedule_config=run.schedule, config=run.step_config)
            if state.step == first + 1:
                keep_freed_memory()  # what stays has been made
            meter.add(report)
            monitor.advance(state.step, report.total)
            watch_for_skips(run, report, batch)
            if state.step % config.monitor.every == 0:
                metrics = meter.read() | describe(run, report) | look(run, check, parts[0], report)
                monitor.write(state.step, metrics)
            if run.is_at_epoch_end and examiner.is_due(run.epoch):
                monitor.write(state.step, examiner.measure(run.teacher_backbone))
                meter.restart()
            code = stop.exit_code()
            minutes = (time.monotonic() - saved_at) / 60
            is_due = distributed.largest(minutes > config.checkpoint.every_minutes)
            if code is not None or run.is_at_epoch_end or is_due:
                is_saved, saved_at = keep(run), time.monotonic()
            if code is not None:
                what = "saved; the same command goes on" if is_saved else "not saved"
                logger.info("asked to stop at step %d: %s", state.step, what)
                return code if is_saved else 1
    finish(run)
    return 0 if is_saved else 1


def to_parts(run: Run, batch: Batch) -> list[list[Tensor]]:
    """Bring a batch to the device in the run's number of passes, each a list of views."""
    finish = PixelFinish(device=run.device, alter=run.config.compute.alter_on_device)
    size = len(batch.names) // run.num_passes
    parts = []
    for start in range(0, len(batch.names), size):
        rows = slice(start, start + size)
        parameters = PixelParameters(*(column[rows] for column in batch.parameters))
        part = Batch([view[rows] for view in batch.views], parameters, batch.names[rows])
        parts.append(finish.to_pixels(part))
    return parts


def seed_step(config: PretrainConfig, step: int) -> None:
    """Make what a step draws (stochastic depth) a function of the step, so none needs saving."""
    rank = distributed.rank() if config.seed_per_rank else 0
    words = np.random.SeedSequence([STEP_STREAM, config.seed, rank, step]).generate_state(1)
    torch.manual_seed(int(words[0]))


def watch_for_skips(run: Run, report: StepReport, batch: Batch) -> None:
    """Write a step down that was given up, and stop after too many in a row."""
    if report.is_finite:
        return
    note_skipped(run.config.out, run.state.step, report, batch.names)
    logger.warning("step %d skipped: gradients are not finite", run.state.step)
    if run.state.num_skipped_in_a_row >= run.config.optim.max_skipped:
        raise TooManySkipped(
            f"{run.state.num_skipped_in_a_row} steps in a row were not finite; their images are "
            f"in {run.config.out / SKIPPED}, e.g. {batch.names[0]}"
        )


def describe(run: Run, report: StepReport) -> dict[str, float]:
    """Say where the run is and what it did the last step with."""
    epoch = (run.state.step - 1) / run.feed.steps_per_epoch
    values: dict[str, float] = report.scheduled._asdict()
    return {"epoch": epoch, **values, "skipped_steps": run.state.num_skipped}


def look(run: Run, check: HealthCheck, views: list[Tensor], report: StepReport) -> dict[str, float]:
    """Read how the teacher does, in the main process; warn if it looks like a collapse."""
    if not distributed.is_main():
        return {}
    is_bf16 = run.step_config.precision == "bf16"
    with torch.autocast(run.device.type, torch.bfloat16, enabled=is_bf16):
        health = check.read(run.state, views, report.scheduled.teacher_temperature)
    is_warm = run.epoch >= max(run.config.schedule.warmup_epochs, 1)
    if is_warm and (warning := check.warning(health)):
        logger.warning("step %d: %s", run.state.step, warning)
    return health._asdict()


def keep(run: Run) -> bool:
    """Save, every so many epochs the teacher for export too; say whether the disk took it."""
    is_saved = save(run)
    every = run.config.checkpoint.keep_every
    if distributed.is_main() and run.is_at_epoch_end and every and run.epoch % every == 0:
        try:
            write_teacher(run, run.config.out / f"teacher-{run.epoch:04}.safetensors")
        except (OSError, SafetensorError) as error:  # worth no run; the checkpoint has it too
            logger.error("teacher of epoch %d not written: %s", run.epoch, error)
    distributed.barrier()  # no process ends while the main one writes
    return is_saved


def finish(run: Run) -> None:
    """Write the teacher and say where it is.

    Raises:
        TooManySkipped: if it is of no use: not finite, or from a run that skipped most steps.
    """
    state = run.state
    floats = [x for x in state.teacher.state_dict().values() if x.is_floating_point()]
    if 2 * state.num_skipped > state.step or not all(bool(x.isfinite().all()) for x in floats):
        raise TooManySkipped(
            f"{state.num_skipped} of {state.step} steps were not finite, and no teacher is written"
            ": the learning rate may be too high"
        )
    if distributed.is_main():
        path = run.config.out / TEACHER
        write_teacher(run, path)
        sys.stdout.write(f"{path}\n")
    distributed.barrier()


def write_teacher(run: Run, path: Path) -> None:
    """Write the teacher's weights, which `trainer.export_onnx` takes."""
    write_safetensors(path, teacher_weights(run.config, run.state, run.provenance()))


def refuse(error: Exception) -> None:
    """Write one line on each machine: what is missing may be missing on one only."""
    if distributed.is_first_of_machine():
        where = "" if distributed.is_main() else f"process {distributed.rank()}: "
        sys.stderr.write(f"{where}{error}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    config = parse(sys.argv[1:] if argv is None else argv)
    map_large_blocks()
    ask_for_huge_pages()
    try:
        with distributed.process_group(may_use_cuda=config.compute.device != "cpu"):
            console = set_up_logging(is_main=distributed.is_main())
            try:
                with claim_folder(config):
                    return start(config, console if distributed.is_main() else None)
            except (OSError, ValueError) as error:
                refuse(error)
    except ValueError as error:  # before the processes have met
        refuse(error)
    return 2


def start(config: PretrainConfig, console: Console | None) -> int:
    """Prepare and train; faults of the run, unlike those of the request, end with 1."""
    run = prepare(config)
    compute, sides = config.compute, {view.size for view in config.crops.specs}
    speed_up(run.state, recompute=compute.recompute, compiled=compute.compile, sides=sides)
    share = config.optim.batch // distributed.world_size()
    logger.info(
        "batch %d = %d processes x %d passes x %d images; peak lr %.3g = %.3g x %d / 256; "
        "%d epochs of %d steps; %s in %s",
        config.optim.batch, distributed.world_size(), run.num_passes, share // run.num_passes,
        run.schedule.lr, config.optim.base_lr, config.optim.batch, run.schedule.epochs,
        run.feed.steps_per_epoch, run.device, run.step_config.precision,
    )  # fmt: skip
    if run.device.type == "cpu":
        logger.info("kernels of our own: %s", kind())
    fewest = -(-share // compute.images_per_pass)
    if run.num_passes > 2 * fewest:
        logger.warning(
            "%d images a process can be cut into %d equal passes only, where %d could do: another "
            "optim.batch or compute.images_per_pass is faster",
            share, run.num_passes, fewest,
        )  # fmt: skip
    examiner = Examiner(config, run.feed.source, run.device)
    monitor = Monitor(
        config.out, console, first_step=run.state.step, num_steps=run.schedule.num_steps,
        tensorboard=config.monitor.tensorboard,
    )  # fmt: skip
    try:
        return train(run, monitor, examiner)
    except (TooManyBadImages, TooManySkipped, OSError, SafetensorError) as error:
        logger.error("%s", (str(error).strip() or repr(error)).splitlines()[-1])
    except Exception:  # a dead worker or process, or a bug: only the traceback tells which
        logger.exception("the run has failed; its last checkpoint stays")
    return 1


if __name__ == "__main__":
    sys.exit(main())
