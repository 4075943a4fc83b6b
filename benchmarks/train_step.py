"""Images a second and peak memory of a training step of Swin-T, window 7, on this machine.

    python -m benchmarks.train_step [--batch 4] [--repetitions 5] [--losses fused written]

A step is the whole of `trainer.step.train_step`: 2 views of 224 px and 8 of 96 px, both tasks with
K = 65536 prototypes, teacher, student, losses, backward, clipping, AdamW, the teacher's average and
the centers. Every case has a process of its own; its peak memory is that of the whole process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from esvit.backbones import build
from esvit.config import BACKBONES, HeadConfig
from esvit.fused_loss import FusedLoss
from esvit.head import ProjectionHead
from esvit.loss import Loss
from esvit.model import EsViT
from esvit.teacher import start_teacher
from trainer.optim import make_optimizer
from trainer.schedule import ScheduleConfig
from trainer.step import StepConfig, TrainState, train_step

LOSSES = {"fused": FusedLoss, "written": Loss}
SIDES = (224, 224) + 8 * (96,)


def make_state(loss: str) -> TrainState:
    """Make student, teacher and the rest, untrained."""
    backbone, head = BACKBONES["swin_tiny_w7"], HeadConfig(norm_last_layer=False)
    features = backbone.stage_dims[-1]
    student, teacher = (
        EsViT(build(backbone), ProjectionHead(features, head), ProjectionHead(features, head))
        for _ in range(2)
    )
    start_teacher(teacher, student)
    teacher.eval()
    return TrainState(
        student=student,
        teacher=teacher,
        optimizer=make_optimizer(student),
        loss=LOSSES[loss](head.num_prototypes),
    )


def peak_mb() -> float:
    """Read the most memory this process has held, in megabytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError("/proc/self/status has no VmHWM")


def measure(loss: str, precision: str, batch: int, repetitions: int) -> None:
    """Measure one case in this process and print it as JSON."""
    torch.manual_seed(0)
    state = make_state(loss)
    schedule = ScheduleConfig(steps_per_epoch=4, warmup_epochs=0)  # past the frozen first epoch
    config = StepConfig(precision="bf16" if precision == "bf16" else "fp32")
    views = [torch.randn(batch, 3, side, side) for side in SIDES]
    seconds = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        report = train_step(state, [views], schedule_config=schedule, config=config)
        seconds.append(time.perf_counter() - start)
    case = {"seconds": seconds[1:], "peak_mb": peak_mb(), "loss": report.total}
    print(json.dumps(case))


def compare(options: argparse.Namespace) -> None:
    """Run all cases in turn and print a line for each."""
    print("loss     precision   s/step (fastest)   images/s (fastest)   peak MB")
    for precision in ("fp32", "bf16"):
        for loss in options.losses:
            case = [loss, precision, str(options.batch), str(options.repetitions)]
            command = [sys.executable, "-m", "benchmarks.train_step", "--case", *case]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result = json.loads(answer)
            median, fastest = statistics.median(result["seconds"]), min(result["seconds"])
            print(
                f"{loss:8s} {precision:9s} {median:8.2f} ({fastest:.2f}) "
                f"{options.batch / median:12.2f} ({options.batch / fastest:.2f}) "
                f"{result['peak_mb']:13.0f}",
                flush=True,
            )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Images a second of a training step.")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        loss, precision, batch, repetitions = options.case
        measure(loss, precision, int(batch), int(repetitions))
    else:
        compare(options)


if __name__ == "__main__":
    main()
