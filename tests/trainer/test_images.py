import multiprocessing
from pathlib import Path

import pytest
from PIL import Image

from tests.trainer.pictures import fill_folder, picture
from trainer.data.files import UnreadableImage
from trainer.data.images import (
    BadImages,
    ImageReader,
    ImageRules,
    TooManyBadImages,
    open_bad_images,
    read_patiently,
)
from trainer.data.sources import open_source


def reader(data, run, **rules):
    source = open_source(str(data))
    run.mkdir(exist_ok=True)
    rules = ImageRules(**rules)
    return ImageReader(source, rules, open_bad_images(run, source, rules))


def listed(run):
    lines = (run / "bad_images.tsv").read_text().splitlines()
    assert lines[0] == "path\treason"
    return dict(line.split("\t") for line in lines[1:])


def test_every_kind_of_bad_image_is_replaced_by_the_next_and_listed_once(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    (data / "a_cut.jpg").write_bytes(picture(0)[:-200])
    (data / "b_text.jpg").write_text("no image")
    (data / "c_tiny.png").write_bytes(picture(1, size=(3, 40), kind="PNG"))
    Image.new("1", (9000, 9000)).save(data / "d_huge.png")
    (data / "e_empty.jpg").write_bytes(b"")
    (data / "f_good.jpg").write_bytes(picture(5))
    (data / "g_notes.txt").write_text("no image either")
    images = reader(data, run)
    for _ in range(2):
        for i in range(6):
            used, image = images.load(i)
            assert used == 5
            assert (image.width, image.height) == (40, 30)
    assert {name: reason[:14] for name, reason in listed(run).items()} == {
        "a_cut.jpg": "image is damag",
        "b_text.jpg": "bytes are no i",
        "c_tiny.png": "image is 3x40,",
        "d_huge.png": "image is 9000x",
        "e_empty.jpg": "image is empty",
        "g_notes.txt": "no image by it",
    }


def test_the_last_image_is_replaced_by_the_first(tmp_path):
    data = fill_folder(tmp_path / "data", 3, classes=("x",))
    (data / "x" / "002.jpg").write_bytes(b"")
    assert reader(data, tmp_path / "run").load(2)[0] == 0


def test_a_file_that_vanished_is_a_bad_image(tmp_path):
    data = fill_folder(tmp_path / "data", 3, classes=("x",))
    images = reader(data, tmp_path / "run")
    (data / "x" / "001.jpg").unlink()
    assert images.load(1)[0] == 2
    assert list(listed(tmp_path / "run")) == ["x/001.jpg"]


def test_a_resumed_run_knows_the_bad_images_without_reading_them(tmp_path):
    data, run = fill_folder(tmp_path / "data", 3, classes=("x",)), tmp_path / "run"
    (data / "x" / "000.jpg").write_bytes(b"")
    reader(data, run).load(0)
    again = reader(data, run)
    again.load(0)
    assert again.bad.num_tried == 1
    assert list(listed(run)) == ["x/000.jpg"]


def test_more_bad_images_than_stated_stop_the_run_with_count_and_examples(tmp_path):
    data, run = fill_folder(tmp_path / "data", 200, classes=("x",)), tmp_path / "run"
    for number in range(0, 200, 5):
        (data / "x" / f"{number:03}.jpg").write_bytes(b"")
    images = reader(data, run, max_bad_share=0.1)
    with pytest.raises(TooManyBadImages, match=r"\d+ of 200 images are bad, over 10\.0%.*x/\d+"):
        [images.load(i) for i in range(200)]
    assert 16 <= len(listed(run)) <= 21


def test_fewer_than_stated_do_not_stop_it(tmp_path):
    data, run = fill_folder(tmp_path / "data", 200, classes=("x",)), tmp_path / "run"
    for number in range(0, 200, 10):
        (data / "x" / f"{number:03}.jpg").write_bytes(b"")
    images = reader(data, run, max_bad_share=0.1)
    for i in range(200):
        images.load(i)
    assert len(listed(run)) == 20


def test_a_folder_of_bad_images_only_stops_early(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(500):
        (data / f"{number}.jpg").write_bytes(b"x")
    images = reader(data, tmp_path / "run", max_bad_share=0.5)
    with pytest.raises(TooManyBadImages):
        images.load(0)
    assert images.bad.num_tried < 50


def test_a_few_images_all_bad_stop_it(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jpg").write_bytes(b"x")
    with pytest.raises(TooManyBadImages, match="none of 1 images"):
        reader(data, tmp_path / "run").load(0)


def _add_many(path, start):
    bad = BadImages(Path(path), 0, 1.0)
    for number in range(start, start + 60):
        bad.num_tried += 1
        bad.add(f"image {number % 80}", "damaged")


def test_processes_list_an_image_once_between_them(tmp_path):
    path = tmp_path / "bad_images.tsv"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_many, args=(path, start)) for start in (0, 20, 40)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(listed(tmp_path)) == sorted(f"image {number}" for number in range(80))
    assert len(path.read_text().splitlines()) == 81


def test_strange_names_keep_to_their_line(tmp_path):
    bad = BadImages(tmp_path / "bad_images.tsv", 0, 1.0)
    name = "a\tb\nc\\d\udcfc\u2028.jpg"
    bad.add(name, "two\nlines")
    again = BadImages(tmp_path / "bad_images.tsv", 0, 1.0)
    again.load()
    assert name in again
    assert len((tmp_path / "bad_images.tsv").read_text().split("\n")) == 3


def test_failing_storage_is_tried_again_and_then_stops_the_run():
    failures = [OSError("stale handle"), OSError("stale handle")]

    def read(i):
        if failures:
            raise failures.pop()
        return b"data"

    assert read_patiently(read, 0, waits_s=(0.0, 0.0)) == b"data"
    failures += [OSError("stale handle")] * 3
    with pytest.raises(OSError, match="stale handle"):
        read_patiently(read, 0, waits_s=(0.0, 0.0))


def test_an_images_own_fault_is_not_tried_again():
    calls = []

    def read(i):
        calls.append(i)
        raise UnreadableImage("cut off")

    with pytest.raises(UnreadableImage):
        read_patiently(read, 3, waits_s=(0.0, 0.0))
    assert calls == [3]


def test_an_impossible_share_is_refused():
    with pytest.raises(ValueError, match="max_bad_share is 2"):
        ImageRules(max_bad_share=2)
