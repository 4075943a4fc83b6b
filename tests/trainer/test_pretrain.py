import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from esvit.weights import read_weights
from tests.trainer.pictures import fill_folder
from trainer.checkpoint import load_latest
from trainer.pretrain import main

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "trainer.pretrain"]
TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
    "-m", "trainer.pretrain",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As the child processes have, so that sums are rounded alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _logging():
    """Put the root logger back to what it was before the command set it up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """23 images: 5 steps of 4 an epoch, 3 images left over."""
    return fill_folder(tmp_path_factory.mktemp("images"), 23)


def smoke(images, out, *flags):
    """Arguments of a run without evaluations, every step told."""
    small = [
        "--crops.global-size",
        "32",
        "--crops.local-sizes",
        "16",
        "--monitor.evaluate-every",
        "0",
    ]
    return [
        "smoke",
        "--data.path",
        str(images),
        "--out",
        str(out),
        *small,
        "--monitor.evaluate-every",
        "0",
        *flags,
    ]


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


def wait_for_step(out, step, timeout_s=60.0):
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


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory):
    """A finished run of 10 steps in 2 epochs."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(smoke(images, out)) == 0
    return out


def test_run_leaves_weights_with_their_provenance(unbroken, images):
    weights = read_weights(unbroken / "teacher.safetensors")
    about = dict(weights.about)
    assert about.pop("revision")
    assert about == {
        "recipe": "smoke",
        "data": str(images),
        "num_images": 23,
        "epochs": 2,
        "steps": 10,
        "batch": 4,
        "init": None,
        "licence": "NOASSERTION",
    }
    teacher = {
        name.removeprefix("teacher/"): tensor
        for name, tensor in last_checkpoint(unbroken).tensors.items()
        if name.startswith("teacher/")
    }
    assert teacher.keys() == weights.state.keys()
    assert all(torch.equal(teacher[name], tensor) for name, tensor in weights.state.items())


def test_metrics_tell_every_step(unbroken):
    lines = metrics(unbroken)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert lines[4]["lr"] == pytest.approx(5e-4 * 4 / 256)
    for line in lines:
        assert line["loss"] == pytest.approx((line["loss_view"] + line["loss_region"]) / 2)
        assert 0 <= line["teacher_entropy"] <= 1
        assert 0 <= line["data_wait_share"] <= 1
        assert line["images_per_s"] > 0


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


def test_other_circumstances_are_said_on_resuming(images, unbroken, tmp_path, capfd):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    assert main(smoke(images, out, "--compute.images-per-pass", "1")) == 0
    said = capfd.readouterr().err
    assert "passes 1 -> 4: every step sees the same images" in said
    assert "not equal bit for bit" in said


def test_finished_run_is_only_written_again(unbroken, images, capsys):
    before = last_checkpoint(unbroken).path.stat().st_mtime_ns
    assert main(smoke(images, unbroken)) == 0
    assert capsys.readouterr().out == f"{unbroken / 'teacher.safetensors'}\n"
    assert last_checkpoint(unbroken).path.stat().st_mtime_ns == before


def test_saved_config_starts_the_same_run(unbroken, tmp_path):
    out = tmp_path / "run"
    assert main(["--config", str(unbroken / "config.json"), "--out", str(out)]) == 0
    assert_equal_runs(out, unbroken)


def test_passes_add_up_to_the_same_run(images, unbroken, tmp_path):
    out = tmp_path / "run"
    assert main(smoke(images, out, "--compute.images-per-pass", "2")) == 0
    expected = [line["loss"] for line in metrics(unbroken)]
    assert [line["loss"] for line in metrics(out)] == pytest.approx(expected, rel=1e-4)


def test_pixels_altered_on_the_device_give_the_same_run(images, unbroken, tmp_path):
    out = tmp_path / "run"
    assert main(smoke(images, out, "--compute.alter-on-device")) == 0
    assert_equal_runs(out, unbroken)


# Torch's compiler uses parts of torch that torch itself has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_compiled_networks_give_the_same_losses(images, unbroken, tmp_path):
    out = tmp_path / "run"
    assert main(smoke(images, out, "--compute.compile")) == 0
    expected = [line["loss"] for line in metrics(unbroken)]
    assert [line["loss"] for line in metrics(out)] == pytest.approx(expected, rel=1e-3)


def test_region_task_joins_a_view_only_run(images, tmp_path):
    view_only, both = tmp_path / "view", tmp_path / "both"
    batch, weights = (
        ("--optim.batch", "10"),
        ("--loss.view-weight", "1", "--loss.region-weight", "0"),
    )
    assert main(smoke(images, view_only, *batch, *weights)) == 0
    assert not any("head_dense" in name for name in last_checkpoint(view_only).tensors)
    assert main(smoke(images, both, *batch, "--init", str(view_only), "--init-epoch", "1")) == 0
    assert [line["step"] for line in metrics(both)] == [3, 4]
    assert metrics(both)[0]["loss_region"] > 0
    assert any("head_dense" in name for name in last_checkpoint(both).tensors)


def test_teacher_stays_at_every_kept_epoch(images, tmp_path):
    out = tmp_path / "run"
    flags = ("--checkpoint.keep-every", "2", "--schedule.epochs", "4", "--optim.batch", "16")
    assert main(smoke(images, out, *flags)) == 0
    names = sorted(path.name for path in out.glob("teacher*"))
    assert names == ["teacher-0002.safetensors", "teacher-0004.safetensors", "teacher.safetensors"]
    assert read_weights(out / names[0]).about["epochs"] == 2


def test_steps_that_are_not_finite_are_named_and_stop_the_run(images, tmp_path, caplog):
    out = tmp_path / "run"
    flags = ("--optim.base-lr", "1e30", "--optim.max-skipped", "2", "--schedule.warmup-epochs", "0")
    assert main(smoke(images, out, *flags)) == 1
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[1]["step"] == lines[0]["step"] + 1
    assert all(len(line["images"]) == 4 for line in lines)
    assert lines[0]["images"][0].endswith(".jpg")


def test_run_stops_when_most_images_are_bad(tmp_path):
    folder = fill_folder(tmp_path / "images", 40)
    for path in sorted(folder.rglob("*.jpg"))[:30]:
        path.write_bytes(b"no picture")
    out = tmp_path / "run"
    assert main(smoke(folder, out)) == 1
    assert len((out / "bad_images.tsv").read_text().splitlines()) >= 17


REFUSED = {
    "no data": ("smoke --data.path {tmp}/none --out {run}", "no such file"),
    "empty data": ("smoke --data.path {tmp}/empty --out {run}", "no image in"),
    "few images": ("{ok} --optim.batch 64", "23 images do not fill one global batch of 64"),
    "foreign folder": (
        "smoke --data.path {images} --out {images}",
        "is not empty and holds no run",
    ),
    "file as folder": ("smoke --data.path {images} --out {tmp}/file", "is a file"),
    "large local crop": ("{ok} --crops.local-sizes 96", "local_sizes are (96,), expected at most"),
    "no such weights": ("{ok} --init {tmp}/none.pth", "none.pth: no such file"),
    "no cuda": ("{ok} --compute.device cuda", "there is no CUDA device"),
    "unknown backbone": ("{ok} --model.arch swin_huge", "backbone is 'swin_huge', expected one of"),
    "endless stream": ("smoke --data.path pipe:true --out {run}", "images_per_epoch is needed"),
    "no evaluation": ("{ok} --monitor.evaluate-path {tmp}/none", "no such file"),
    "no config": ("--config {tmp}/none.json", "none.json"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="one case wants that there is no CUDA device")
@pytest.mark.parametrize("case", REFUSED)
def test_request_that_cannot_be_met_ends_with_one_line_and_2(case, images, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    arguments, message = REFUSED[case]
    run = f"{tmp_path}/run"
    ok = f"smoke --data.path {images} --out {run}"
    arguments = arguments.format(tmp=tmp_path, run=run, ok=ok, images=images).split()
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    lines = [line for line in capfd.readouterr().err.splitlines() if " INFO " not in line]
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]


def test_other_config_is_refused_with_what_differs(unbroken, images, capfd):
    flags = ("--optim.batch", "2", "--seed", "3", "--monitor.every", "2")
    assert main(smoke(images, unbroken, *flags)) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.endswith("holds another run: optim.batch was 4, is 2; seed was 0, is 3")


def test_other_images_are_refused(unbroken, tmp_path, capfd):
    other = fill_folder(tmp_path / "other", 24)
    assert main(smoke(other, unbroken)) == 2
    assert "began with 23 images" in capfd.readouterr().err.splitlines()[-1]


def test_fault_before_the_first_step_leaves_no_config_to_contradict(images, tmp_path):
    out = tmp_path / "run"
    assert main(smoke(images, out, "--optim.batch", "64")) == 2
    assert main(smoke(images, out, "--schedule.epochs", "1", "--schedule.warmup-epochs", "0")) == 0


@pytest.mark.slow
def test_two_processes_equal_one_with_their_batch(images, unbroken, tmp_path):
    out = tmp_path / "run"
    child = launch(TORCHRUN, smoke(images, out))
    output, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert output == f"{out / 'teacher.safetensors'}\n"
    for one, two in zip(metrics(unbroken), metrics(out), strict=True):
        for name in ("loss", "loss_view", "loss_region", "gradient_norm", "lr"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), (one["step"], name)
    one, two = last_checkpoint(unbroken), last_checkpoint(out)
    for name in ("loss/center", "loss/center_grid"):
        np.testing.assert_allclose(two.tensors[name], one.tensors[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_all_processes_stop_on_a_signal_to_one_and_go_on_alone(images, tmp_path):
    out = tmp_path / "run"
    flags = ("--schedule.epochs", "400")
    child = launch(TORCHRUN, smoke(images, out, *flags))
    wait_for_step(out, 3)
    holder = (out / "lock").read_text()  # host NAME, process NUMBER
    os.kill(int(holder.split()[-1]), signal.SIGUSR1)
    _, errors = child.communicate(timeout=120)
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
    _, errors = child.communicate(timeout=180)
    assert child.returncode == 0, errors
    assert "resuming from step-0000000" in errors
    assert [line["step"] for line in metrics(out)] == list(range(1, 31))
