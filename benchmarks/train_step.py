"""Images a second and peak memory of a training step of Swin-T, window 7: ours and as published.

    python -m benchmarks.train_step [--batch 4] [--repetitions 5]

A step is 2 views of 224 px and 8 of 96 px, both tasks with K = 65536 prototypes: teacher, student,
losses, backward, clipping, AdamW, the teacher's average and the centers. `ours` is the whole of
`trainer.step.train_step`, with memory as `trainer.pretrain` holds it, `recompute` the same with
`--compute.recompute`. `published` is what the published code does with the same networks and
views: all logits are made, the losses and attention are written out, padding is multiplied, and
clipping, AdamW and the average go tensor by tensor. Its windows are cut by our code, which is a
little faster. Every case has a process of its own; its peak memory is that of the whole process.
Ours is measured with the C library's memory and, where it is installed, with that of tcmalloc.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esvit.backbones import build, windows
from esvit.backbones.attend import attend_with_weights
from esvit.backbones.layers import Attention
from esvit.backbones.remake import keep_all
from esvit.config import BACKBONES, HeadConfig
from esvit.fused_loss import FusedLoss
from esvit.head import ProjectionHead
from esvit.loss import Loss
from esvit.model import EsViT
from esvit.teacher import start_teacher
from trainer.memory import ask_for_huge_pages, keep_freed_memory
from trainer.optim import make_optimizer, param_groups
from trainer.schedule import ScheduleConfig
from trainer.step import StepConfig, TrainState, train_step

SIDES = (224, 224) + 8 * (96,)

OURS = ("ours", "recompute")

WARM_UP = 3
"""Steps that do not count: the first of a run still ask for memory."""


def make_state(form: str) -> TrainState:
    """Make student, teacher and the rest, untrained."""
    backbone, head = BACKBONES["swin_tiny_w7"], HeadConfig(norm_last_layer=False)
    networks = []
    for _ in range(2):
        built = build(backbone)
        heads = (ProjectionHead(built.dim, head) for _ in range(2))
        networks.append(EsViT(built, *heads))
    student, teacher = networks
    start_teacher(teacher, student)
    teacher.eval()
    if form in OURS:
        student.backbone.recompute = form == "recompute"
        return TrainState(
            student=student,
            teacher=teacher,
            optimizer=make_optimizer(student),
            loss=FusedLoss(head.num_prototypes),
        )
    optimizer = torch.optim.AdamW(param_groups(student), lr=5e-4, weight_decay=0.04, foreach=False)
    return TrainState(
        student=student, teacher=teacher, optimizer=optimizer, loss=Loss(head.num_prototypes)
    )


def our_step(state: TrainState, views: list[Tensor], precision: str) -> float:
    """Do a step of ours, past the first epoch with its frozen prototypes; gives the loss."""
    schedule = ScheduleConfig(steps_per_epoch=1, warmup_epochs=0)
    config = StepConfig(precision="bf16" if precision == "bf16" else "fp32")
    return train_step(state, [views], schedule_config=schedule, config=config).total


def published_step(state: TrainState, views: list[Tensor], precision: str) -> float:
    """Do a step as the published code does; gives the loss."""
    with keep_all(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        with torch.no_grad():
            teacher = state.teacher(views[:2])
        loss = state.loss(state.student(views), teacher, 0.04).total
    state.loss.update_centers(teacher)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for parameter in state.student.parameters():
        if parameter.grad is not None:
            scale = 3.0 / (parameter.grad.norm(2).item() + 1e-6)
            if scale < 1:
                parameter.grad.mul_(scale)
    state.optimizer.step()
    with torch.no_grad():
        for average, new in zip(
            state.teacher.parameters(), state.student.parameters(), strict=True
        ):
            average.mul_(0.996).add_((1 - 0.996) * new)
    return loss.item()


def written_out_attention(self: Attention, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend among the tokens of each row, with the weights kept for the backward pass."""
    num, T, C = x.shape
    qkv = self.qkv(x).view(num, T, 3, self.num_heads, C // self.num_heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    attended, _ = attend_with_weights(query, key, value, bias, query.shape[-1] ** -0.5)
    joined: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
    return joined


def peak_mb() -> float:
    """Read the most memory this process has held, in megabytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError("/proc/self/status has no VmHWM")


def measure(form: str, precision: str, batch: int, repetitions: int) -> None:
    """Measure one case in this process and print it as JSON."""
    if form in OURS:
        keep_freed_memory()
        ask_for_huge_pages()
        step = our_step
    else:
        Attention.forward = written_out_attention  # type: ignore[method-assign]  # for this process
        windows.MUCH_PADDING = math.inf
        step = published_step
    torch.manual_seed(0)
    state = make_state(form)
    views = [torch.randn(batch, 3, side, side) for side in SIDES]
    seconds = []
    for _ in range(repetitions + WARM_UP):
        start = time.perf_counter()
        loss = step(state, views, precision)
        seconds.append(time.perf_counter() - start)
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
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        form, precision, batch, repetitions = options.case
        measure(form, precision, int(batch), int(repetitions))
    else:
        compare(options.batch, options.repetitions)


if __name__ == "__main__":
    main()
