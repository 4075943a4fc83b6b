import os
from pathlib import Path

import pytest
import torch

from tests.trainer.pictures import fill_folder, write_tar
from trainer.data.loader import LoaderConfig
from trainer.data.sources import open_source
from trainer.evaluation import features
from trainer.evaluation.features import Extraction, extract, images_digest
from trainer.evaluation.images import SquareDataset, preprocessing


class Compute:
    """Gives the mean colour, counts what it was asked, and may be interrupted."""

    def __init__(self, limit=None):
        self.asked, self.limit = 0, limit

    def __call__(self, squares):
        if self.limit is not None and self.asked >= self.limit:
            raise KeyboardInterrupt
        self.asked += len(squares.pixels)
        return squares.pixels.float().mean((2, 3))


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 8)
    return open_source(str(fill_folder(tmp_path / "images", 20)))


def run(source, compute, cache, *, indices=range(20), key=None):
    how = Extraction(
        compute=compute,
        key=key or {"weights": "w"},
        batch=3,
        loader=LoaderConfig(num_workers=0),
        cache=cache,
    )
    dataset = SquareDataset(source, indices, preprocessing(32))
    return extract(dataset, source, indices, how, name="images")


def test_rows_are_in_the_order_asked_for(source, tmp_path):
    rows = run(source, Compute(), None)
    each = [run(source, Compute(), None, indices=[i]).all() for i in range(20)]
    torch.testing.assert_close(rows.all(), torch.cat(each))
    assert [len(part) for part in rows.parts] == [8, 8, 4]
    assert rows.positions.tolist() == list(range(20))
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_second_time_nothing_is_worked_out(source, tmp_path):
    first = run(source, Compute(), tmp_path / "cache")
    again = Compute(limit=0)
    assert torch.equal(run(source, again, tmp_path / "cache").all(), first.all())


def test_interrupted_goes_on_where_it_was(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(source, Compute(limit=11), tmp_path / "cache")
    rest = Compute()
    rows = run(source, rest, tmp_path / "cache")
    assert rest.asked == 12
    assert torch.equal(rows.all(), run(source, Compute(), None).all())


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-5], lambda data: b"", lambda data: data[9:]]
)
def test_cut_file_is_made_again(source, tmp_path, damage):
    first = run(source, Compute(), tmp_path / "cache")
    expected = first.all()
    del first
    path = sorted(tmp_path.glob("cache/*/*.safetensors"))[1]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(data))
    again = Compute()
    assert torch.equal(run(source, again, tmp_path / "cache").all(), expected)
    assert again.asked == 8
    assert path.read_bytes() == data


def test_part_of_other_images_is_made_again(source, tmp_path):
    run(source, Compute(), tmp_path / "cache")
    first, second, _ = sorted(tmp_path.glob("cache/*/*.safetensors"))
    second.write_bytes(first.read_bytes())
    again = Compute()
    run(source, again, tmp_path / "cache")
    assert again.asked == 8


def test_other_weights_other_images_and_changed_images_are_worked_out(source, tmp_path):
    cache = tmp_path / "cache"
    run(source, Compute(), cache)
    for other in ({"key": {"weights": "v"}}, {"indices": range(1, 20)}):
        compute = Compute()
        run(source, compute, cache, **other)
        assert compute.asked
    path = tmp_path / "images" / source.name(0)
    os.utime(path, ns=(0, 0))
    compute = Compute()
    run(source, compute, cache)
    assert compute.asked == 20


def test_bad_images_are_left_out_and_known(source, tmp_path):
    for i in (0, 9, 16, 17, 18, 19):
        (tmp_path / "images" / source.name(i)).write_bytes(b"damaged")
    for _ in range(2):
        rows = run(source, Compute(), tmp_path / "cache")
        kept = [i for i in range(16) if i not in (0, 9)]
        assert rows.positions.tolist() == kept
        assert (len(rows), rows.asked) == (14, 20)


def test_images_of_which_none_can_be_read_are_refused(source, tmp_path):
    for path in (tmp_path / "images").rglob("*.jpg"):
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="none of 20 images can be read"):
        run(source, Compute(), None)


def test_nothing_unfinished_is_left_behind(source, tmp_path, monkeypatch):
    def full(*_):
        raise features.SafetensorError("no space left")

    monkeypatch.setattr(features, "save_file", full)
    with pytest.raises(OSError, match="could not be written: no space left"):
        run(source, Compute(), tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_digest_of_an_archive_is_of_the_file_and_the_place(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("1.jpg", b"a"), ("2.jpg", b"b")])
    source = open_source(str(path))
    first = images_digest(source, [0, 1])
    assert first == images_digest(source, [0, 1])
    assert first != images_digest(source, [1])
    os.utime(path, ns=(0, 0))
    assert first != images_digest(source, [0, 1])


def test_digest_of_a_missing_file_is_another(source, tmp_path):
    first = images_digest(source, [0])
    (tmp_path / "images" / source.name(0)).unlink()
    assert images_digest(source, [0]) != first


def test_images_that_may_be_read_now_are_other_images(source):
    before = images_digest(source, range(20))
    path = Path(source.index.files[0]) / source.name(3)
    path.chmod(0)
    assert images_digest(source, range(20)) != before
    path.chmod(0o644)
    assert images_digest(source, range(20)) == before
