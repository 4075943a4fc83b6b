import shutil

import pytest

from tests.trainer.pictures import fill_folder, picture
from trainer.data.sources import open_source
from trainer.evaluation.columns import check_column, parse_condition, read_records, select

MANIFEST = "path,vendor,label\ncat/000.jpg,a,x\ndog/001.jpg,b,x\n"


@pytest.fixture
def images(tmp_path):
    return fill_folder(tmp_path, 2)


def records(path, wanted=("vendor",)):
    return read_records(str(path), open_source(str(path)), wanted)


def test_names_say_class_stem_and_tail(tmp_path):
    for name in ("cat/1f431__google.png", "dog/1f436__twitter.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(picture(0, kind="PNG"))
    found = [(r["class"], r["stem"], r["tail"]) for r in records(tmp_path)]
    assert found == [("cat", "1f431", "google"), ("dog", "1f436", "twitter")]


def test_manifest_adds_its_columns(images):
    (images / "manifest.csv").write_text(MANIFEST)
    assert [r["vendor"] for r in records(images)] == ["a", "b"]
    assert [r["class"] for r in records(images)] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,vendor\ncat/000.jpg,a\n", "no line for dog/001.jpg"),
        ("file,vendor\nx,y\n", "no column path"),
        ("path,vendor\ncat/000.jpg\n", "line 2 has not as many values"),
        ("path,vendor\ncat/000.jpg,a,b\n", "line 2 has not as many values"),
        ("", "no column path"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(images, text, message):
    (images / "manifest.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        records(images)


@pytest.mark.parametrize(
    ("conditions", "positions"),
    [
        ([], [0, 1, 2]),
        (["a=1"], [0, 2]),
        (["a!=1"], [1]),
        (["a=1,2", "b=y"], [1, 2]),
        (["b!=x,y"], []),
        (["b=", "a=1"], []),
    ],
)
def test_conditions_must_all_hold(conditions, positions):
    rows = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}, {"a": "1", "b": "y"}]
    assert select(rows, [parse_condition(text) for text in conditions]) == positions


@pytest.mark.parametrize("text", ["vendor", "=google", "!=google"])
def test_condition_without_column_or_sign_is_refused(text):
    with pytest.raises(ValueError, match="expected column=value"):
        parse_condition(text)


def test_unknown_column_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no column 'c'; there are a, b"):
        check_column([{"b": "", "a": ""}], "c")


def test_a_manifest_that_a_spreadsheet_wrote_is_read(images):
    (images / "manifest.csv").write_text(MANIFEST, encoding="utf-8-sig")
    assert [r["vendor"] for r in records(images)] == ["a", "b"]


def test_no_manifest_is_read_for_what_names_say(images):
    (images / "manifest.csv").write_text("of,something,else\n")
    assert [r["class"] for r in records(images, ["class", "stem"])] == ["cat", "dog"]


def test_an_archive_has_the_lines_of_the_folder_that_it_is_of(images, tmp_path):
    lines = MANIFEST.replace("cat/", "train/cat/").replace("dog/", "train/dog/")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "manifest.csv").write_text(lines)
    archive = shutil.make_archive(str(folder / "train"), "zip", images)
    assert {r["class"]: r["vendor"] for r in records(archive)} == {"cat": "a", "dog": "b"}
