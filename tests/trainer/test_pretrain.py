import json

import pytest
import torch

from esvit.weights import read_weights
from tests.trainer.pictures import fill_folder
from tests.trainer.runs import assert_equal_runs, last_checkpoint, metrics, smoke
from trainer.pretrain import main

pytestmark = pytest.mark.usefixtures("alone")


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
        "image_size": 32,
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


def test_a_run_that_skipped_most_of_its_steps_is_no_success(images, tmp_path, capfd):
    out = tmp_path / "run"
    flags = (
        "--optim.base-lr",
        "1e30",
        "--optim.max-skipped",
        "99",
        "--schedule.warmup-epochs",
        "0",
    )
    assert main(smoke(images, out, *flags)) == 1
    assert "steps were not finite, and no teacher is written" in capfd.readouterr().err
    assert not (out / "teacher.safetensors").exists()


def test_run_stops_when_most_images_are_bad(tmp_path):
    folder = fill_folder(tmp_path / "images", 40)
    for path in sorted(folder.rglob("*.jpg"))[:30]:
        path.write_bytes(b"no picture")
    out = tmp_path / "run"
    assert main(smoke(folder, out)) == 1
    assert len((out / "bad_images.tsv").read_text().splitlines()) >= 17
