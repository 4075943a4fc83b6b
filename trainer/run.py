"""A run made ready: its folder, its images, its networks where they left off.

Everything that can be wrong with a request is found here, before the first step.
"""

import json
import logging
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from esvit.model import EsViT
from esvit.native.library import kind
from trainer import distributed
from trainer.checkpoint import (
    Checkpoint,
    CheckpointNotWritten,
    KeepRule,
    check_space,
    list_checkpoints,
    load_latest,
    remove_leftovers,
    remove_old,
    save_checkpoint,
    set_newer_aside,
)
from trainer.config import MAY_CHANGE, PretrainConfig
from trainer.config_file import to_json
from trainer.data.files import expand
from trainer.data.sources import is_stream
from trainer.devices import choose_device, choose_precision, count_passes
from trainer.feed import Feed, open_feed
from trainer.networks import (
    CHECKPOINTS,
    build_state,
    load_state,
    source_revision,
    start_from,
    state_tensors,
)
from trainer.run_folder import CONFIG, check_config, lock_folder
from trainer.schedule import ScheduleConfig, peak_lr, plan_schedule
from trainer.step import StepConfig, TrainState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that the loop needs.

    Attributes:
        config: As given.
        device: Of this process.
        feed: The images.
        schedule: Resolved for them.
        step_config: How a step is done.
        num_passes: Parts that this process's share of a batch is cut into.
        state: Networks, optimizer, centers and step; changed by the loop.
    """

    config: PretrainConfig
    device: torch.device
    feed: Feed
    schedule: ScheduleConfig
    step_config: StepConfig
    num_passes: int
    state: TrainState

    @property
    def teacher_backbone(self) -> nn.Module:
        """The teacher without its heads."""
        assert isinstance(self.state.teacher, EsViT)
        return self.state.teacher.backbone

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return self.state.step // self.feed.steps_per_epoch

    @property
    def is_at_epoch_end(self) -> bool:
        """Whether the last step was the last of its epoch."""
        return self.state.step % self.feed.steps_per_epoch == 0

    def provenance(self) -> dict[str, Any]:
        """Say where the weights are from: values that JSON can hold."""
        return {
            "recipe": self.config.recipe,
            "data": self.config.data.path,
            "num_images": self.feed.num_images,
            "epochs": self.epoch,
            "steps": self.state.step,
            "batch": self.config.optim.batch,
            "image_size": self.config.crops.global_size,
            "init": str(self.config.init) if self.config.init else None,
            "revision": source_revision(),
        }

    def circumstances(self) -> dict[str, Any]:
        """Say what a resumed run must share to be equal bit for bit."""
        return {
            "processes": distributed.world_size(),
            "device": self.device.type,
            "precision": self.step_config.precision,
            "passes": self.num_passes,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "kernels": kind() if self.device.type == "cpu" else None,
            "readers": self.config.loader.num_workers if self.feed.source is None else None,
        }


def prepare(config: PretrainConfig) -> Run:
    """Make a run ready, fresh or where it left off; all processes call it together.

    Raises:
        FileNotFoundError: if images or weights are not there.
        ValueError: if parts of the request contradict each other, the data or the run's folder.
        CheckpointNotWritten: if there is no room for checkpoints.
    """
    device = choose_device(config.compute)
    share = config.optim.batch // distributed.world_size()
    feed = open_feed(config)
    state = build_state(config, device)
    found = load_latest(config.out / CHECKPOINTS)
    run = Run(
        config=config,
        device=device,
        feed=feed,
        schedule=plan_schedule(
            config.schedule,
            steps_per_epoch=feed.steps_per_epoch,
            lr=peak_lr(config.optim.base_lr, config.optim.batch),
        ),
        step_config=StepConfig(
            num_global_views=config.crops.num_global,
            precision=choose_precision(
                config.compute,
                device,
                before=found.state["circumstances"].get("precision") if found else None,
            ),
            clip=config.optim.clip,
            clip_norm=config.optim.clip_norm,
            freeze_epochs=config.optim.freeze_epochs,
        ),
        num_passes=count_passes(share, config.compute.images_per_pass),
        state=state,
    )
    if found is not None:
        _resume(run, found)
    elif config.init is not None:
        fresh = start_from(state, config.init)
        state.step = config.init_epoch * feed.steps_per_epoch
        heads = sorted({name.split(".")[0] for name in fresh}) or ["none"]
        logger.info("weights of %s; fresh: %s", config.init, ", ".join(heads))
    if distributed.is_main() and not list_checkpoints(config.out / CHECKPOINTS):
        _check_room(run)
    return run


@contextmanager
def claim_folder(config: PretrainConfig) -> Generator[None]:
    """Hold the run's folder for the time of the block; all processes enter together.

    Raises:
        FileNotFoundError: if there is nothing at data.path.
        ValueError: if the folder holds something else, another run, or is in use.
    """
    with ExitStack() as stack:
        fault: OSError | ValueError | None = None
        if distributed.is_main():
            try:
                _check_folder(config)
                (config.out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_folder(config.out))
                _check_config(config)
                remove_leftovers(config.out / CHECKPOINTS)
            except (OSError, ValueError) as error:
                fault = error
        refused = distributed.largest(int(fault is not None))
        if fault is not None:
            raise fault
        if refused:
            raise ValueError("refused by the main process")
        yield


def save(run: Run) -> bool:
    """Write a checkpoint and remove old ones, in the main process; say whether the disk took it."""
    if not distributed.is_main():
        return True
    folder, config = run.config.out / CHECKPOINTS, run.config.checkpoint
    state = {
        "num_images": run.feed.num_images,
        "num_skipped": run.state.num_skipped,
        "num_skipped_in_a_row": run.state.num_skipped_in_a_row,
        "circumstances": run.circumstances(),
        **run.provenance(),
    }
    try:
        save_checkpoint(folder, run.state.step, state_tensors(run.state), state)
    except CheckpointNotWritten as error:
        logger.error("%s; the last good checkpoint stays", error)
        return False
    every = config.keep_every * run.feed.steps_per_epoch
    remove_old(folder, KeepRule(last=config.keep_last, every=every))
    return True


def _check_room(run: Run) -> None:
    """Refuse a run whose checkpoints do not fit; warn if those that stay for good will not.

    Raises:
        CheckpointNotWritten: if there is no room for those that lie there at any time.
    """
    out, config, size = run.config.out, run.config.checkpoint, _checkpoint_bytes(run.state)
    at_once = config.keep_last + 1  # a new one is written before the oldest goes
    check_space(out, size, checkpoints=at_once)
    for_good = run.schedule.epochs // config.keep_every if config.keep_every else 0
    free, needed = shutil.disk_usage(out).free, (at_once + for_good) * size
    if free < needed:
        logger.warning(
            "%s has %s MB free; with the %d checkpoints that stay for good (checkpoint.keep_every) "
            "the run will take %s MB",
            out, f"{free / 1e6:,.0f}", for_good, f"{needed / 1e6:,.0f}",
        )  # fmt: skip


def _checkpoint_bytes(state: TrainState) -> int:
    """Give the size of the checkpoints of a run that has not begun: AdamW has no moments yet."""
    trained = [x for x in state.student.parameters() if x.requires_grad]
    return sum(x.nbytes for x in (*state_tensors(state).values(), *trained, *trained))


def _resume(run: Run, found: Checkpoint) -> None:
    """Go on from a checkpoint of the run's folder."""
    if found.state["num_images"] != run.feed.num_images:
        raise ValueError(
            f"{run.config.out} began with {found.state['num_images']} images, "
            f"{run.config.data.path} has {run.feed.num_images}"
        )
    if distributed.is_main():
        set_newer_aside(run.config.out / CHECKPOINTS, found.path)
    load_state(run.state, found.tensors)
    run.state.step = found.step
    run.state.num_skipped = found.state["num_skipped"]
    run.state.num_skipped_in_a_row = found.state["num_skipped_in_a_row"]
    logger.info("resuming from %s, epoch %d", found.path.name, run.epoch)
    before, now = found.state["circumstances"], run.circumstances()
    changed = [f"{k} {before.get(k)} -> {now[k]}" for k in now if before.get(k) != now[k]]
    if changed:
        logger.warning(
            "%s: sums are rounded otherwise%s: not equal bit for bit to an unbroken run",
            ", ".join(changed),
            ", other blocks are dropped and, in a stream, images are dealt otherwise"
            if any(
                before.get(key) != now[key] for key in ("processes", "passes", "device", "readers")
            )
            else "",
        )


def _check_folder(config: PretrainConfig) -> None:
    """Refuse a folder of something else, and data that are not there."""
    if not is_stream(config.data.path):
        expand(config.data.path)
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"{config.out} is a file, expected a folder")
    if config.out.exists() and any(config.out.iterdir()) and not (config.out / CONFIG).exists():
        raise ValueError(f"{config.out} is not empty and holds no run that could be resumed")


def _check_config(config: PretrainConfig) -> None:
    """Compare with the config that the folder's run has; one that made no checkpoint is none."""
    if not list_checkpoints(config.out / CHECKPOINTS):
        (config.out / CONFIG).unlink(missing_ok=True)
    try:
        check_config(config.out, to_json(config), MAY_CHANGE)
    except json.JSONDecodeError as error:
        raise ValueError(f"{config.out / CONFIG} is damaged: {error}") from error
