from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esvit.backbones import Features
from tests.trainer.pictures import fill_folder, picture
from trainer.config import MonitorConfig
from trainer.data.sources import open_source
from trainer.online import Examiner
from trainer.recipes import smoke

CPU = torch.device("cpu")


class Brightness(torch.nn.Module):
    """A backbone that can tell where: features are the pixels of a 4 x 4 thumbnail, centred."""

    def forward(self, pixels):
        maps = torch.nn.functional.adaptive_avg_pool2d(pixels, 4)  # (B, 3, 4, 4)
        return Features(maps.mean((2, 3)), maps.flatten(2).transpose(1, 2))


class Place(torch.nn.Module):
    """A backbone whose regions say where they are, but not what is there."""

    def forward(self, pixels):
        regions = torch.eye(16).expand(len(pixels), 16, 16)
        return Features(pixels.mean((2, 3)), regions)


@pytest.fixture
def images(tmp_path):
    """40 pictures in two classes, dark and bright."""
    for number in range(40):
        name = "bright" if number % 2 else "dark"
        path = tmp_path / "images" / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(150 if number % 2 else 0))
    return tmp_path / "images"


def config(tmp_path, **monitor):
    monitor = {"evaluate_every": 2, "evaluate_images": 6} | monitor
    return replace(smoke("images", tmp_path), monitor=MonitorConfig(**monitor))


def test_classes_that_features_tell_apart_are_known(images, tmp_path):
    examiner = Examiner(config(tmp_path), open_source(str(images)), CPU)
    metrics = examiner.measure(Brightness())
    assert metrics["eval_knn"] == 1
    assert 0 <= metrics["eval_correspondence"] <= 1
    assert metrics == examiner.measure(Brightness())


class ModeSeen(Brightness):
    """Remembers in which mode it was run."""

    def __init__(self):
        super().__init__()
        self.modes = set()

    def forward(self, images):
        self.modes.add(self.training)
        return super().forward(images)


def test_backbone_is_measured_in_evaluation_mode_and_left_in_its_own(images, tmp_path):
    examiner, backbone = Examiner(config(tmp_path), open_source(str(images)), CPU), ModeSeen()
    examiner.measure(backbone)
    assert (backbone.modes, backbone.training) == ({False}, True)


def test_regions_that_know_only_their_place_are_never_found_mirrored(images, tmp_path):
    metrics = Examiner(config(tmp_path), open_source(str(images)), CPU).measure(Place())
    assert metrics["eval_correspondence"] == 0
    assert 16 <= metrics["eval_correspondence_px"] <= 48  # of 64 px


def test_without_labels_only_correspondence_is_measured(tmp_path):
    flat = fill_folder(tmp_path / "flat", 12, classes=("",))
    metrics = Examiner(config(tmp_path), open_source(str(flat)), CPU).measure(Brightness())
    assert "eval_correspondence" in metrics
    assert "eval_knn" not in metrics


def test_queries_come_from_the_folder_for_evaluation(images, tmp_path):
    other = tmp_path / "other"
    for number in range(4):  # bright pictures, said to be dark; and a class unknown in training
        path = other / ("dark" if number < 3 else "unknown") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(150))
    settings = config(tmp_path, evaluate_path=str(other))
    metrics = Examiner(settings, open_source(str(images)), CPU).measure(Brightness())
    assert metrics["eval_knn"] == 0


def test_bad_images_are_left_out(images, tmp_path):
    for path in sorted((images / "dark").iterdir()):
        path.write_bytes(b"damaged")
    metrics = Examiner(config(tmp_path), open_source(str(images)), CPU).measure(Brightness())
    assert metrics["eval_knn"] == 1


def test_images_of_which_none_can_be_read_give_no_number(images, tmp_path):
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"damaged")
    assert Examiner(config(tmp_path), open_source(str(images)), CPU).measure(Brightness()) == {}


def test_stream_is_measured_on_a_folder_of_its_own_only(images, tmp_path, caplog):
    caplog.set_level("INFO")
    assert not Examiner(config(tmp_path), None, CPU).is_due(2)
    assert "a stream is evaluated on --monitor.evaluate-path only" in caplog.text
    examiner = Examiner(config(tmp_path, evaluate_path=str(images)), None, CPU)
    assert examiner.is_due(2)
    assert "eval_knn" not in examiner.measure(Brightness())


def test_measures_are_due_every_so_many_epochs_and_at_the_end(images, tmp_path):
    settings = replace(config(tmp_path), schedule=replace(config(tmp_path).schedule, epochs=5))
    examiner = Examiner(settings, open_source(str(images)), CPU)
    assert [epoch for epoch in range(1, 6) if examiner.is_due(epoch)] == [2, 4, 5]
    never = replace(settings, monitor=replace(settings.monitor, evaluate_every=0))
    assert not Examiner(never, open_source(str(images)), CPU).is_due(5)


def test_missing_folder_for_evaluation_is_refused(images, tmp_path):
    settings = config(tmp_path, evaluate_path=str(Path(tmp_path) / "none"))
    with pytest.raises(FileNotFoundError, match="none"):
        Examiner(settings, open_source(str(images)), CPU)


class Counting(Brightness):
    """Counts the images that it is shown."""

    def __init__(self):
        super().__init__()
        self.shown = 0

    def forward(self, images):
        self.shown += len(images)
        return super().forward(images)


def test_no_image_is_run_twice(images, tmp_path):
    examiner, backbone = Examiner(config(tmp_path), open_source(str(images)), CPU), Counting()
    examiner.measure(backbone)
    assert backbone.shown == 6 + 6 + 24  # queries, their copies, the bank
