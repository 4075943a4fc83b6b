"""The region task beside itself: written out (`esvit/loss.py`) and fused (`esvit/fused_loss.py`).

    python -m benchmarks.region_loss [--batches 4 32] [--repetitions 5] [--num-prototypes 65536]

One image has the regions of 2 views of 224 px (49 each) and 8 of 96 px (9 each) in the student, of
the former in the teacher; a 256-d bottleneck. What is timed is what a training step does between
the bottleneck and its gradient: the head's last matrix product, matching, loss, backward, in the
same precision on both sides. Each form has a process of its own, and the two take turns
(`benchmarks.turns`). Its extra memory is the peak of the resident set over what was resident before
the first call.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F

from benchmarks.turns import Case, Work, run_in_turns, status_mb, times_as_fast
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


def prepare(form: str, precision: str, batch: int, num_prototypes: int) -> Work:
    """Make a process ready, past its first call."""
    torch.manual_seed(0)
    student = make_output(batch, SIZES, num_prototypes)
    teacher = make_output(batch, SIZES[:2], num_prototypes)
    loss = FORMS[form](num_prototypes, view_weight=0, region_weight=1)

    def turn() -> None:
        for leaf in (student.view, *student.view_prototypes):
            leaf.grad = None
        with torch.autocast("cpu", enabled=precision == "bf16"):
            total = loss(student, teacher, 0.04).total
        total.backward()

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident
    before = status_mb("VmRSS")
    turn()
    return Work(turn, lambda: status_mb("VmHWM") - before)


def compare(batches: list[int], repetitions: int, num_prototypes: int) -> None:
    """Run all cases, print a line for each batch and precision, and the growth with the batch."""
    print(
        "precision  batch   written s    fused s   times as fast        written MB   fused MB share"
    )
    for precision in ("fp32", "bf16"):
        fused_mb = []
        for batch in batches:
            cases = [
                Case(partial(prepare, form, precision, batch, num_prototypes)) for form in FORMS
            ]
            written, fused = run_in_turns(cases, repetitions)
            times = times_as_fast(written, fused)
            speed = f"{median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})"
            fused_mb.append(fused.peak_mb)
            print(
                f"{precision:9s} {batch:6d} {written.median:11.3f} {fused.median:10.3f}   "
                f"{speed:20s} {written.peak_mb:11.0f} {fused.peak_mb:10.0f} "
                f"{fused.peak_mb / written.peak_mb:6.3f}",
                flush=True,
            )
        print(f"{precision}: fused memory grows {max(fused_mb) / min(fused_mb):.2f} times")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--num-prototypes", type=int, default=65536)
    options = parser.parse_args()
    compare(options.batches, options.repetitions, options.num_prototypes)


if __name__ == "__main__":
    main()
