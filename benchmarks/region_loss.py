"""The region task beside itself: written out (`esvit/loss.py`) and fused (`esvit/fused_loss.py`).

    python -m benchmarks.region_loss [--batches 4 32] [--repetitions 5] [--num-prototypes 65536]

One image has the regions of 2 views of 224 px (49 each) and 8 of 96 px (9 each) in the student, of
the former in the teacher; a 256-d bottleneck. What is timed is what a training step does between
the bottleneck and its gradient: the head's last matrix product, matching, loss, backward, in the
same precision on both sides. Every case has a process of its own. Its extra memory is the peak of
the resident set over what was resident before the first call.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from esvit.fused_loss import FusedLoss
from esvit.head import Prototypes
from esvit.loss import Loss
from esvit.model import Projections

SIZES = (49, 49) + 8 * (9,)
DIM, BOTTLENECK = 768, 256
FORMS = {"written": Loss, "fused": FusedLoss}


def make_output(batch: int, sizes: tuple[int, ...], num_prototypes: int) -> Projections:
    """Make random features, unit bottlenecks, prototypes of length 1; the latter two are leaves."""
    num_rows = batch * sum(sizes)
    rows = F.normalize(torch.randn(num_rows, BOTTLENECK), dim=-1).requires_grad_()
    directions = torch.randn(num_prototypes, BOTTLENECK).requires_grad_()
    prototypes = Prototypes(directions, torch.ones(num_prototypes, 1).requires_grad_())
    features = torch.randn(num_rows, DIM)
    return Projections(rows, prototypes, rows, prototypes, features, sizes)


def resident_mb(field: str) -> float:
    """Read a field of this process's memory, in megabytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/self/status has no {field}")


def measure(form: str, precision: str, batch: int, repetitions: int, num_prototypes: int) -> None:
    """Measure one case in this process and print it as JSON."""
    torch.manual_seed(0)
    student = make_output(batch, SIZES, num_prototypes)
    teacher = make_output(batch, SIZES[:2], num_prototypes)
    loss = FORMS[form](num_prototypes, view_weight=0, region_weight=1)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident
    before = resident_mb("VmRSS")
    seconds = []
    for _ in range(repetitions + 1):
        for leaf in (student.view, *student.view_prototypes):
            leaf.grad = None
        start = time.perf_counter()
        with torch.autocast("cpu", enabled=precision == "bf16"):
            total = loss(student, teacher, 0.04).total
        total.backward()
        seconds.append(time.perf_counter() - start)
    case = {
        "seconds": seconds[1:],
        "extra_mb": resident_mb("VmHWM") - before,
        "loss": total.item(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(case))


def run_case(*arguments: str) -> dict[str, Any]:
    """Measure one case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.region_loss", "--case", *arguments]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    case: dict[str, Any] = json.loads(answer)  # a process's JSON
    case["median"] = statistics.median(case["seconds"])
    return case


def compare(batches: list[int], repetitions: int, num_prototypes: int) -> None:
    """Run all cases, print a line for each batch and precision, and the growth with the batch."""
    print("precision  batch   written s    fused s   times    written MB   fused MB   share")
    for precision in ("fp32", "bf16"):
        fused_mb = []
        for batch in batches:
            written, fused = (
                run_case(form, precision, str(batch), str(repetitions), str(num_prototypes))
                for form in FORMS
            )
            fused_mb.append(fused["extra_mb"])
            print(
                f"{precision:9s} {batch:6d} {written['median']:11.3f} {fused['median']:10.3f} "
                f"{written['median'] / fused['median']:7.2f} {written['extra_mb']:13.0f} "
                f"{fused['extra_mb']:10.0f} {fused['extra_mb'] / written['extra_mb']:7.3f}",
                flush=True,
            )
        print(f"{precision}: fused memory grows {max(fused_mb) / min(fused_mb):.2f} times")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--num-prototypes", type=int, default=65536)
    parser.add_argument("--case", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        form, precision, *counts = options.case
        measure(form, precision, *map(int, counts))
    else:
        compare(options.batches, options.repetitions, options.num_prototypes)


if __name__ == "__main__":
    main()
