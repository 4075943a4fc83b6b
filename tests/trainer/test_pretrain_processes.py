"""Runs of several processes under torchrun, on gloo."""

import os
import signal
import sys
import threading

import numpy as np
import pytest

from tests.trainer.runs import last_checkpoint, launch, metrics, smoke, wait_for_step
from trainer.pretrain import main

TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
    "-m", "trainer.pretrain",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.slow
def test_two_processes_equal_one_with_their_batch(images, unbroken, tmp_path):
    out = tmp_path / "run"
    child = launch(TORCHRUN, smoke(images, out))
    output, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors
    assert output == f"{out / 'teacher.safetensors'}\n"
    for one, two in zip(metrics(unbroken), metrics(out), strict=True):
        for name in ("loss", "loss_view", "loss_region", "gradient_norm", "lr"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), (one["step"], name)
    one, two = last_checkpoint(unbroken), last_checkpoint(out)
    for name in ("loss/center", "loss/center_grid"):
        np.testing.assert_allclose(two.tensors[name], one.tensors[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_all_processes_find_the_same_steps_due_for_a_checkpoint(images, tmp_path):
    out = tmp_path / "run"
    flags = ("--schedule.epochs", "12", "--checkpoint.every-minutes", "0.002")  # no step's end
    child = launch(TORCHRUN, smoke(images, out, *flags))
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors
    assert last_checkpoint(out).step == len(metrics(out)) == 60


@pytest.mark.slow
def test_all_processes_stop_on_a_signal_to_one_and_go_on_alone(images, tmp_path):
    out = tmp_path / "run"
    flags = ("--schedule.epochs", "400")
    child = launch(TORCHRUN, smoke(images, out, *flags))
    wait_for_step(out, 3)
    holder = (out / "lock").read_text()  # host NAME, process NUMBER
    os.kill(int(holder.split()[-1]), signal.SIGUSR1)
    _, errors = child.communicate(timeout=600)
    assert child.returncode != 0
    assert "asked to stop at step" in errors
    assert "exitcode  : 75" in errors
    stopped = last_checkpoint(out).step
    thread = threading.Thread(
        target=lambda: (wait_for_step(out, stopped + 2), os.kill(os.getpid(), signal.SIGTERM))
    )
    thread.start()
    assert main(smoke(images, out, *flags)) == 143
    thread.join()
    steps = [line["step"] for line in metrics(out)]
    assert steps == list(range(1, steps[-1] + 1))
    assert steps[-1] > stopped


@pytest.mark.slow
def test_killed_process_is_restarted_from_the_checkpoint(images, tmp_path):
    out = tmp_path / "run"
    command = [*TORCHRUN[:3], "--max-restarts", "1", *TORCHRUN[3:]]
    flags = ("--schedule.epochs", "6", "--checkpoint.every-minutes", "1e-9")
    child = launch(command, smoke(images, out, *flags))
    wait_for_step(out, 8)
    os.kill(int((out / "lock").read_text().split()[-1]), signal.SIGKILL)
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors
    assert "resuming from step-0000000" in errors
    assert [line["step"] for line in metrics(out)] == list(range(1, 31))
