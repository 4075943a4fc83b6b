"""Small pretraining runs for tests: how they are started, waited for and compared."""

import json
import logging
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from trainer.checkpoint import load_latest

ROOT = Path(__file__).parents[2]


@contextmanager
def as_a_process_of_its_own():
    """One thread, as child processes have, so that sums are rounded alike; the log as it was."""
    threads, root = torch.get_num_threads(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        root.handlers, root.level = handlers, level


def smoke(images, out, *flags):
    """Arguments of a run of small views without evaluations, every step told."""
    views = ("--crops.global-size", "32", "--crops.local-sizes", "16")
    wanted = ("--data.path", str(images), "--out", str(out), "--monitor.evaluate-every", "0")
    return ["smoke", *wanted, *views, *flags]


def launch(command, arguments):
    """Start a command of its own, one thread a process."""
    return subprocess.Popen(
        [*command, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def metrics(out):
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for_step(out, step, timeout_s=300.0):
    end = time.monotonic() + timeout_s
    while not any(line["step"] >= step for line in metrics(out)):
        assert time.monotonic() < end, f"no step {step}"
        time.sleep(0.005)


def last_checkpoint(out):
    found = load_latest(out / "checkpoints")
    assert found is not None
    return found


def assert_equal_runs(one, other):
    """Bit for bit: networks, moments, centers; and every loss that was told."""
    a, b = last_checkpoint(one), last_checkpoint(other)
    assert a.step == b.step
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        assert torch.equal(tensor, b.tensors[name]), name
    losses = [[(line["step"], line["loss"]) for line in metrics(out)] for out in (one, other)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == a.step
