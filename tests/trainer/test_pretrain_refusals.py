"""Requests that cannot be met end before the first step."""

import pytest
import torch

from tests.trainer.pictures import fill_folder
from tests.trainer.runs import smoke
from trainer.pretrain import main

pytestmark = pytest.mark.usefixtures("alone")


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
