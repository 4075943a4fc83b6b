"""Runs that are stopped, killed or damaged, and go on."""

import os
import shutil
import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from tests.trainer.runs import assert_equal_runs, last_checkpoint, launch, smoke, wait_for_step
from trainer.checkpoint import CheckpointNotWritten, save_checkpoint
from trainer.pretrain import main

COMMAND = [sys.executable, "-m", "trainer.pretrain"]

pytestmark = pytest.mark.usefixtures("alone")


def test_signal_saves_and_the_next_start_goes_on_as_if_unbroken(images, unbroken, tmp_path):
    out = tmp_path / "run"

    def stop():
        wait_for_step(out, 3)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=stop)
    thread.start()
    assert main(smoke(images, out)) == 75
    thread.join()
    assert 3 <= last_checkpoint(out).step < 10
    assert not (out / "teacher.safetensors").exists()
    assert main(smoke(images, out)) == 0
    assert_equal_runs(out, unbroken)


@pytest.mark.slow
def test_killed_run_goes_on_as_if_unbroken(images, unbroken, tmp_path):
    """Augmentation, optimizer and centers included, in the middle of an epoch, with workers."""
    out = tmp_path / "run"
    arguments = smoke(
        images, out, "--checkpoint.every-minutes", "1e-9", "--loader.num-workers", "2"
    )
    child = launch(COMMAND, arguments)
    wait_for_step(out, 7)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert 6 <= last_checkpoint(out).step < 10
    assert main(smoke(images, out)) == 0
    assert_equal_runs(out, unbroken)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError()])
def test_a_fault_of_the_run_is_none_of_the_request(error, images, tmp_path, monkeypatch, capfd):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("trainer.pretrain.train_step", fail)
    assert main(smoke(images, tmp_path / "run")) == 1
    assert (str(error) or "OSError") in capfd.readouterr().err


def test_disk_that_fills_up_ends_with_1_and_the_next_start_goes_on(
    images, unbroken, tmp_path, monkeypatch, capfd
):
    def fill_up(folder, step, tensors, state):
        if step == 10:
            raise CheckpointNotWritten("step-000000010 could not be written")
        return save_checkpoint(folder, step, tensors, state)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("trainer.run.save_checkpoint", fill_up)
        assert main(smoke(images, out)) == 1
    assert "could not be written; the last good checkpoint stays" in capfd.readouterr().err
    assert (out / "teacher.safetensors").exists()
    assert last_checkpoint(out).step == 5
    assert main(smoke(images, out)) == 0
    assert_equal_runs(out, unbroken)


def test_disk_without_room_for_the_kept_checkpoints_and_a_new_one_is_refused(
    images, unbroken, tmp_path, monkeypatch, capfd
):
    size = last_checkpoint(unbroken).path.stat().st_size
    for free, code in ((3.9 * size, 2), (4 * size, 0)):
        disk = SimpleNamespace(free=int(free))
        monkeypatch.setattr("trainer.checkpoint.shutil.disk_usage", lambda _, disk=disk: disk)
        assert main(smoke(images, tmp_path / str(code))) == code
        assert ("MB free; 4 checkpoints take" in capfd.readouterr().err) == (code == 2)


def test_a_run_whose_checkpoints_for_good_will_not_fit_is_warned(
    images, unbroken, tmp_path, monkeypatch, capfd
):
    size = last_checkpoint(unbroken).path.stat().st_size
    flags = ("--checkpoint.keep-every", "2")  # of 2 epochs one stays
    for free, is_warned in ((4.9 * size, True), (5 * size, False)):
        disk = SimpleNamespace(free=int(free))
        monkeypatch.setattr("trainer.checkpoint.shutil.disk_usage", lambda _, disk=disk: disk)
        assert main(smoke(images, tmp_path / str(is_warned), *flags)) == 0
        assert ("the 1 checkpoints that stay for good" in capfd.readouterr().err) == is_warned


def test_cut_checkpoint_falls_back_to_the_one_before(images, unbroken, tmp_path, capfd):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    newest = last_checkpoint(out).path
    newest.write_bytes(newest.read_bytes()[:-100])
    assert main(smoke(images, out)) == 0
    said = capfd.readouterr().err
    assert f"{newest.name} is passed over" in said.replace(f"{newest.parent}/", "")
    assert "resuming from step-000000005.safetensors, epoch 1" in said
    assert_equal_runs(out, unbroken)


def test_a_measured_precision_stays_that_of_the_run(images, unbroken, tmp_path, capfd, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    last_checkpoint(out).path.unlink()
    began = last_checkpoint(out).state["circumstances"]["precision"]
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr("trainer.devices.product_speedup", lambda: 9.0 if began == "fp32" else 0.1)
    assert main(smoke(images, out, "--compute.precision", "auto")) == 0
    assert f"cpu in {began}" in capfd.readouterr().err
    assert_equal_runs(out, unbroken)


def test_other_circumstances_are_said_on_resuming(images, unbroken, tmp_path, capfd):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    assert main(smoke(images, out, "--compute.images-per-pass", "1")) == 0
    said = capfd.readouterr().err
    assert "passes 1 -> 4: sums are rounded otherwise, other blocks are dropped" in said
    assert "not equal bit for bit" in said


def test_finished_run_is_only_written_again(unbroken, images, capsys):
    before = last_checkpoint(unbroken).path.stat().st_mtime_ns
    assert main(smoke(images, unbroken)) == 0
    assert capsys.readouterr().out == f"{unbroken / 'teacher.safetensors'}\n"
    assert last_checkpoint(unbroken).path.stat().st_mtime_ns == before
