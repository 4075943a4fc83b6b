"""Images a second and peak memory of a training step of Swin-T, window 7: ours and as published.

    python -m benchmarks.train_step [--batch 4] [--repetitions 5] [--rounds 1]

A step is 2 views of 224 px and 8 of 96 px, both tasks with K = 65536 prototypes: teacher, student,
losses, backward, clipping, AdamW, the teacher's average and the centers. `ours` is the whole of
`trainer.step.train_step`, with memory as `trainer.pretrain` holds it, `recompute` the same with
`--compute.recompute`. `published` is what the published code does with the same parameters and
views (`benchmarks.published`). Every case has a process of its own; its peak memory is that of the
whole process.
Ours is measured with the C library's memory and, where it is installed, with that of tcmalloc.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import published
from esvit.backbones import build
from esvit.config import BACKBONES, HeadConfig
from esvit.fused_loss import FusedLoss
from esvit.head import ProjectionHead
from esvit.model import EsViT
from esvit.teacher import start_teacher
from trainer.memory import ask_for_huge_pages, keep_freed_memory, map_large_blocks
from trainer.optim import make_optimizer, param_groups
from trainer.schedule import ScheduleConfig
from trainer.step import StepConfig, TrainState, train_step

SIDES = (224, 224) + 8 * (96,)

OURS = ("ours", "recompute")

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


def peak_mb() -> float:
    """Read the most memory this process has held, in megabytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError("/proc/self/status has no VmHWM")


def measure(form: str, precision: str, batch: int, repetitions: int) -> None:
    """Measure one case in this process and print it as JSON."""
    if form in OURS:
        map_large_blocks()
        ask_for_huge_pages()
    torch.manual_seed(0)
    if form in OURS:
        step = our_step(precision, recompute=form == "recompute")
    else:
        step = published_step(precision)
    views = [torch.randn(batch, 3, side, side) for side in SIDES]
    seconds = []
    for _ in range(repetitions + WARM_UP):
        start = time.perf_counter()
        loss = step(views)
        seconds.append(time.perf_counter() - start)
        if form in OURS and len(seconds) == 1:
            keep_freed_memory()
    print(json.dumps({"seconds": seconds[WARM_UP:], "peak_mb": peak_mb(), "loss": loss}))


def run_case(*arguments: str, preload: str | None) -> dict[str, Any]:
    """Measure one case in a process of its own, with the functions of a library before others'."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--case", *arguments]
    environment = {**os.environ, "LD_PRELOAD": preload} if preload else None
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout
    case: dict[str, Any] = json.loads(answer)  # a process's JSON
    return case


def compare(batch: int, repetitions: int) -> None:
    """Run all cases in turn and print a line for each, beside the published form in fp32."""
    print("form       memory   precision   s/step (fastest)   images/s   times    peak MB   share")
    tcmalloc = find_library("tcmalloc_minimal")
    memories = {"system": None} | ({"tcmalloc": tcmalloc} if tcmalloc else {})
    cases = [("published", "system"), *itertools.product(OURS, memories)]
    first: dict[str, float] = {}
    for (form, memory), precision in itertools.product(cases, ("fp32", "bf16")):
        words = (form, precision, str(batch), str(repetitions))
        case = run_case(*words, preload=memories[memory])
        median, peak = statistics.median(case["seconds"]), case["peak_mb"]
        first = first or {"median": median, "peak": peak}
        print(
            f"{form:10s} {memory:8s} {precision:9s} {median:8.2f} ({min(case['seconds']):.2f}) "
            f"{batch / median:14.2f} {first['median'] / median:7.2f} "
            f"{peak:10.0f} {peak / first['peak']:7.2f}",
            flush=True,
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Images a second of a training step.")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        form, precision, batch, repetitions = options.case
        measure(form, precision, int(batch), int(repetitions))
    else:
        for _ in range(options.rounds):
            compare(options.batch, options.repetitions)


if __name__ == "__main__":
    main()
