"""A training step of Swin-T, window 7: ours beside the published code's, in time and memory.

    python -m benchmarks.train_step [--batch 4] [--repetitions 10] [--forms ours torch recompute]

A step is 2 views of 224 px and 8 of 96 px, both tasks with K = 65536 prototypes: teacher, student,
losses, backward, clipping, AdamW, the teacher's average and the centers. `ours` is the whole of
`trainer.step.train_step`, with memory as `trainer.pretrain` holds it, `torch` the same without
kernels of our own, `recompute` with `--compute.recompute`. `published` is what the published code
does with the same parameters and views (`benchmarks.published`), in bf16 under autocast.

Every case is a process of its own, whose peak memory is that of the whole process. The published
code in both precisions takes turns with a form of ours in both (`benchmarks.turns`): 15 GB at once.
Ours is measured with the C library's memory and, where it is installed, with that of tcmalloc.
"""

import argparse
import os
from collections.abc import Callable
from ctypes.util import find_library
from functools import partial
from itertools import product
from statistics import median

import torch
from torch import Tensor

from benchmarks import published
from benchmarks.turns import Case, Result, Work, run_in_turns, status_mb, times_as_fast
from esvit.backbones import build
from esvit.config import BACKBONES, HeadConfig
from esvit.fused_loss import FusedLoss
from esvit.head import ProjectionHead
from esvit.model import EsViT
from esvit.native.library import SETTING as KERNELS
from esvit.teacher import start_teacher
from trainer.memory import ask_for_huge_pages, keep_freed_memory, map_large_blocks
from trainer.optim import make_optimizer, param_groups
from trainer.schedule import ScheduleConfig
from trainer.step import StepConfig, TrainState, train_step

SIDES = (224, 224) + 8 * (96,)

OURS = ("ours", "torch", "recompute")
PRECISIONS = ("fp32", "bf16")

Step = Callable[[list[Tensor]], float]
"""Does a step on views and gives its loss."""

WARM_UP = 3
"""Steps that do not count: the first of a run still ask for memory."""


def make_networks() -> tuple[EsViT, EsViT]:
    """Make student and teacher, untrained."""
    head = HeadConfig(norm_last_layer=False)
    networks = []
    for _ in range(2):
        backbone = build(BACKBONES["swin_tiny_w7"])
        heads = (ProjectionHead(backbone.dim, head) for _ in range(2))
        networks.append(EsViT(backbone, *heads))
    student, teacher = networks
    start_teacher(teacher, student)
    teacher.eval()
    return student, teacher


def our_step(precision: str, *, recompute: bool) -> Step:
    """Give a step of ours, past the first epoch with its frozen prototypes."""
    student, teacher = make_networks()
    student.backbone.recompute = recompute
    optimizer, loss = make_optimizer(student), FusedLoss(student.head.config.num_prototypes)
    state = TrainState(student=student, teacher=teacher, optimizer=optimizer, loss=loss)
    schedule = ScheduleConfig(steps_per_epoch=1, warmup_epochs=0)
    config = StepConfig(precision="bf16" if precision == "bf16" else "fp32")
    return lambda views: train_step(state, [views], schedule_config=schedule, config=config).total


def published_step(precision: str) -> Step:
    """Give a step as the published code does it."""
    student, teacher = make_networks()
    centers = published.Centers(student.head.config.num_prototypes)
    optimizer = torch.optim.AdamW(param_groups(student), lr=5e-4, weight_decay=0.04)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    return lambda views: published.step(
        student, teacher, centers, optimizer, views, autocast=autocast
    )


def prepare(form: str, precision: str, batch: int) -> Work:
    """Make a process ready to do steps."""
    if form in OURS:
        map_large_blocks()
        ask_for_huge_pages()
    if form == "torch":
        os.environ[KERNELS] = "off"
    torch.manual_seed(0)
    if form in OURS:
        step = our_step(precision, recompute=form == "recompute")
    else:
        step = published_step(precision)
    views = [torch.randn(batch, 3, side, side) for side in SIDES]
    for number in range(WARM_UP):
        step(views)
        if form in OURS and number == 0:
            keep_freed_memory()
    return Work(lambda: step(views), lambda: status_mb("VmHWM"))


def compare(forms: list[str], batch: int, repetitions: int) -> None:
    """Run each form of ours beside the published code; print a line for each two that matter."""
    print(f"{'form':10s} {'memory':9s} {'s/step':20s} times as fast         {'peak MB':20s} share")
    tcmalloc = find_library("tcmalloc_minimal")
    libraries = {"system": None} | ({"tcmalloc": tcmalloc} if tcmalloc else {})
    published = [Case(partial(prepare, "published", precision, batch)) for precision in PRECISIONS]
    for form, (memory, library) in product(forms, libraries.items()):
        ours = [Case(partial(prepare, form, precision, batch), library) for precision in PRECISIONS]
        results = run_in_turns([*published, *ours], repetitions)
        theirs, its = (
            dict(zip(PRECISIONS, some, strict=True)) for some in (results[:2], results[2:])
        )
        for precision, beside in (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")):
            line = in_words(its[precision], precision, theirs[beside], beside)
            print(f"{form:10s} {memory:9s} {line}", flush=True)


def in_words(ours: Result, precision: str, published: Result, its_precision: str) -> str:
    """Write down what ours takes beside the published code."""
    times = times_as_fast(published, ours)
    seconds = f"{precision} {ours.median:5.2f}, {its_precision} {published.median:5.2f}"
    speed = f"{median(times):5.2f} ({times[0]:.2f} to {times[-1]:.2f})"
    memory = f"{ours.peak_mb:.0f}, {published.peak_mb:.0f}"
    return f"{seconds:20s} {speed:21s} {memory:20s} {ours.peak_mb / published.peak_mb:.2f}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--forms", nargs="+", choices=OURS, default=OURS)
    options = parser.parse_args()
    compare(options.forms, options.batch, options.repetitions)


if __name__ == "__main__":
    main()
