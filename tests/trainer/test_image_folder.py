import csv
import fcntl
import json
import os
from dataclasses import dataclass

import pytest

from tests.trainer.pictures import names
from trainer.prepare.image_folder import Collection, Picture, Request, prepare, split_of


def drawing(number, data=b"png"):
    concept = f"c{number}"
    return Picture(
        f"{number}.png", "cat", split_of(concept), concept, "", "me", "MIT", "here", data
    )


@dataclass(frozen=True, kw_only=True)
class Drawings(Request):
    """So many pictures."""

    count: int = 20

    def collect(self, cache):
        pictures = map(drawing, range(self.count))
        return Collection(pictures, self.count, "# Licences\n", ["archive sha256-x"])


class Failing(Drawings):
    """Stops in the middle."""

    def collect(self, cache):
        def pictures():
            yield drawing(0)
            raise OSError("disk full")

        return Collection(pictures(), 2, "", [])


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_folder_manifest_and_record_agree(tmp_path):
    out = tmp_path / "new" / "set"
    assert prepare(Drawings(out=out)) == 20
    with (out / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(str(p) for p in tree(out) if p.endswith(".png"))
    assert rows[0] == {
        "path": rows[0]["path"], "label": "cat", "concept": rows[0]["concept"], "variant": "",
        "vendor": "me", "split": "train", "licence": "MIT", "source": "here",
    }  # fmt: skip
    about = json.loads((out / "dataset.json").read_text())
    splits = [row["split"] for row in rows]
    assert about["pictures"] == {"train": splits.count("train"), "val": splits.count("val")}
    assert (about["set"], about["count"], about["origins"]) == (
        "Drawings", 20, ["archive sha256-x"],
    )  # fmt: skip
    assert names(tmp_path / "new") == ["set"]


def test_equal_requests_give_equal_folders(tmp_path):
    prepare(Drawings(out=tmp_path / "a"))
    prepare(Drawings(out=tmp_path / "b"))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_the_same_request_again_finds_its_work_done(tmp_path):
    prepare(Drawings(out=tmp_path / "a"))
    before = (tmp_path / "a").stat().st_mtime_ns
    assert prepare(Drawings(out=tmp_path / "a")) == 20
    assert (tmp_path / "a").stat().st_mtime_ns == before


def test_another_request_for_the_same_folder_is_refused(tmp_path):
    prepare(Drawings(out=tmp_path / "a"))
    with pytest.raises(ValueError, match="has count 20, not 3: give another --out"):
        prepare(Drawings(out=tmp_path / "a", count=3))


def test_a_folder_of_someone_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="not made by this command"):
        prepare(Drawings(out=tmp_path))
    assert names(tmp_path) == ["letter.txt"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        prepare(Drawings(out=tmp_path / "a"))


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "a").mkdir()
    assert prepare(Drawings(out=tmp_path / "a")) == 20


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        prepare(Failing(out=tmp_path / "a"))
    assert names(tmp_path) == []


def test_what_a_killed_start_left_is_not_taken_over(tmp_path):
    left = tmp_path / ".a.partial" / "train" / "dog"
    left.mkdir(parents=True)
    (left / "old.png").write_bytes(b"old")
    (tmp_path / ".a.partial" / "manifest.csv").write_text("old")
    prepare(Drawings(out=tmp_path / "a"))
    assert not any("old" in path for path in tree(tmp_path / "a"))
    assert names(tmp_path) == ["a"]


def test_two_processes_cannot_make_one_folder(tmp_path):
    partial = tmp_path / ".a.partial"
    partial.mkdir()
    handle = os.open(partial, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(ValueError, match="being made by another process"):
            prepare(Drawings(out=tmp_path / "a"))
    finally:
        os.close(handle)


def test_two_pictures_of_one_name_are_a_mistake(tmp_path):
    class Twice(Drawings):
        def collect(self, cache):
            return Collection([drawing(1), drawing(1)], 2, "", [])

    with pytest.raises(FileExistsError):
        prepare(Twice(out=tmp_path / "a"))


@pytest.mark.parametrize(
    ("concept", "split"), [("1f600", "train"), ("1f680", "train"), ("1f431", "val")]
)
def test_splits_are_for_good(concept, split):
    assert split_of(concept) == split


def test_about_one_in_five_is_held_out():
    held_out = sum(split_of(str(number)) == "val" for number in range(5000))
    assert 900 < held_out < 1100
