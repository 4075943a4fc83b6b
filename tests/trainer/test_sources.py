import os
import pickle
import zipfile

import numpy as np
import pytest

from tests.trainer.pictures import fill_folder, picture, write_tar
from trainer.data import archives, files
from trainer.data.files import UnreadableImage
from trainer.data.index import load_index
from trainer.data.sources import is_stream, open_source


def contents(source):
    return {source.name(i): source.read(i) for i in range(len(source))}


def labels(source):
    return {source.name(i): source.label(i) for i in range(len(source))}


def test_folder_is_read_by_index_with_its_top_folders_as_classes(tmp_path):
    fill_folder(tmp_path, 4)
    deep = tmp_path / "dog" / "puppies" / "x.PNG"
    deep.parent.mkdir()
    deep.write_bytes(picture(9, kind="PNG"))
    source = open_source(str(tmp_path))
    assert source.index.classes == ("cat", "dog")
    assert labels(source) == {
        "cat/000.jpg": 0, "cat/002.jpg": 0, "dog/001.jpg": 1, "dog/003.jpg": 1,
        "dog/puppies/x.PNG": 1,
    }  # fmt: skip
    assert contents(source)["dog/001.jpg"] == picture(1)
    assert source.block_size == 1


def test_a_folder_of_one_class_has_one(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(picture(0))
    source = open_source(str(tmp_path))
    assert (source.index.classes, labels(source)) == (("cat",), {"cat/a.jpg": 0})


def test_flat_folder_has_no_classes_and_lists_what_is_no_image(tmp_path):
    (tmp_path / "b.jpg").write_bytes(picture(0))
    (tmp_path / "no_suffix").write_bytes(picture(1))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.jpg").write_bytes(picture(2))
    source = open_source(str(tmp_path))
    assert labels(source) == {"b.jpg": -1, "no_suffix": -1}
    assert source.index.classes == ()
    assert source.index.skipped == ("notes.txt",)
    assert source.index.num_skipped == 1


def test_names_that_are_not_utf8_are_read(tmp_path):
    name = os.fsdecode(b"gr\xfc\xdfe.jpg")
    (tmp_path / name).write_bytes(picture(0))
    assert contents(open_source(str(tmp_path))) == {name: picture(0)}


def test_a_link_that_leads_back_ends_the_walk(tmp_path):
    fill_folder(tmp_path, 2)
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    assert len(open_source(str(tmp_path))) == 2


def test_linked_folders_are_followed(tmp_path):
    fill_folder(tmp_path / "data", 2)
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "linked").symlink_to(tmp_path / "data" / "dog")
    assert contents(open_source(str(tmp_path / "view"))) == {"linked/001.jpg": picture(1)}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_members_are_read_at_their_places(tmp_path, compression):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for number in range(4):
            archive.writestr(f"set/train/{'ab'[number % 2]}/{number}.jpg", picture(number))
        archive.writestr("set/train/list.txt", "0.jpg")
        archive.writestr("__MACOSX/set/._0.jpg", "fork")
    source = open_source(str(path))
    assert labels(source) == {
        "set/train/a/0.jpg": 0, "set/train/b/1.jpg": 1,
        "set/train/a/2.jpg": 0, "set/train/b/3.jpg": 1,
    }  # fmt: skip
    assert contents(source)["set/train/b/3.jpg"] == picture(3)
    assert source.index.skipped == ("set/train/list.txt",)


def test_a_damaged_zip_member_is_one_images_fault(tmp_path):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.jpg", picture(0))
        archive.writestr("1.jpg", picture(1))
    data = bytearray(path.read_bytes())
    data[40:60] = b"\xff" * 20
    path.write_bytes(data)
    source = open_source(str(path))
    with pytest.raises(UnreadableImage, match="zip member is damaged"):
        source.read(0)
    assert source.read(1) == picture(1)


def test_encrypted_and_unknown_zip_members_are_refused(tmp_path):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("0.jpg", picture(0))
    with pytest.raises(UnreadableImage, match="compression 14"):
        open_source(str(path)).read(0)
    data = bytearray(path.read_bytes())
    data[6] |= 1
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match="encrypted"):
        open_source(str(path)).read(0)


def test_tar_shards_by_braces_with_labels_before_or_behind(tmp_path):
    write_tar(
        tmp_path / "s-00.tar",
        [("a/x.cls", b"7"), ("a/x.jpg", picture(0)), ("a/x.json", b"{}"), ("y.png", picture(1))],
    )
    write_tar(tmp_path / "s-01.tar", [("z.jpg", picture(2)), ("z.txt", b"cap"), ("z.cls", b"10")])
    source = open_source(f"{tmp_path}/s-{{00..01}}.tar")
    assert source.index.classes == ("7", "10")
    assert labels(source) == {"s-00.tar/a/x.jpg": 0, "s-00.tar/y.png": -1, "s-01.tar/z.jpg": 1}
    assert list(contents(source).values()) == [picture(0), picture(1), picture(2)]


def test_a_tar_file_that_is_cut_off_is_noticed_per_image(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.jpg", picture(0)), ("b.jpg", picture(1))])
    source = open_source(str(path))
    with path.open("r+b") as file:
        file.truncate(2000)
    assert source.read(0) == picture(0)
    with pytest.raises(UnreadableImage, match="cut off"):
        source.read(1)


@pytest.mark.parametrize("kind", ["zip", "tar", "parquet"])
def test_a_file_of_another_kind_than_its_name_says_is_refused_by_name(kind, tmp_path):
    path = tmp_path / f"all.{kind}"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=rf"{path} is no .*{kind} file, or damaged"):
        open_source(str(path))


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match="no uncompressed tar file"):
        open_source(str(tmp_path / "s.tar"))


@pytest.mark.parametrize("nested", [True, False])
def test_parquet_rows_are_images(tmp_path, nested):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for part in range(2):
        numbers = range(part * 5, part * 5 + 5)
        column = [picture(n) for n in numbers]
        images = [{"bytes": data, "path": None} for data in column] if nested else column
        table = pyarrow.table(
            {"image": images, "label": [n % 3 for n in numbers], "caption": ["c"] * 5}
        )
        parquet.write_table(table, tmp_path / f"{part}.parquet", row_group_size=2)
    source = open_source(f"{tmp_path}/*.parquet")
    assert len(source) == 10
    assert [source.label(i) for i in range(10)] == [n % 3 for n in range(10)]
    assert [source.read(i) for i in (9, 0, 4)] == [picture(9), picture(0), picture(4)]
    assert source.name(9) == "1.parquet#2.0"
    assert source.block_size == 10 // 6


@pytest.mark.parametrize("nested", [True, False])
def test_a_large_row_group_is_read_in_pieces(tmp_path, nested):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = [b"%d" % n for n in range(600)]
    images = [{"bytes": data, "path": None} for data in column] if nested else column
    parquet.write_table(pyarrow.table({"image": images}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert [source.read(i) for i in range(600)] == column


def test_parquet_without_an_image_column_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="one named image; of bytes there are: none"):
        open_source(str(tmp_path / "a.parquet"))


def test_the_cache_is_used_while_nothing_changes(tmp_path, monkeypatch):
    data, cache = fill_folder(tmp_path / "data", 4), tmp_path / "index.safetensors"
    first = open_source(str(data), cache)
    monkeypatch.setattr(files.os, "scandir", None)  # a scan would fail
    again = open_source(str(data), cache)
    assert contents(again) == contents(first)
    assert labels(again) == labels(first)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_changed_folder_is_scanned_again(tmp_path):
    data, cache = fill_folder(tmp_path / "data", 4), tmp_path / "index.safetensors"
    open_source(str(data), cache)
    (data / "cat" / "new.jpg").write_bytes(picture(7))
    os.utime(data / "cat", ns=(1, 1))  # the clock of the file system may be coarse
    assert len(open_source(str(data), cache)) == 5


def test_a_cache_of_other_data_or_a_damaged_one_is_made_anew(tmp_path):
    one, two = fill_folder(tmp_path / "one", 4), fill_folder(tmp_path / "two", 6)
    cache = tmp_path / "index.safetensors"
    open_source(str(one), cache)
    assert len(open_source(str(two), cache)) == 6
    cache.write_bytes(cache.read_bytes()[:50])
    assert len(open_source(str(two), cache)) == 6
    assert load_index(cache, "another key") is None


def test_sources_travel_to_workers(tmp_path):
    source = open_source(str(fill_folder(tmp_path, 3)))
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_an_index_of_many_images_is_small():
    builder = archives.IndexBuilder(["x"])
    for number in range(20_000):
        builder.add(f"folder-{number % 100}/image-{number:07}.jpg", f"folder-{number % 100}")
    index = builder.finish()
    arrays = (index.names, index.ends, index.labels, index.places)
    assert sum(array.nbytes for array in arrays) < 70 * 20_000
    assert index.name(19_999) == "folder-99/image-0019999.jpg"
    assert np.bincount(index.labels).tolist() == [200] * 100


@pytest.mark.parametrize(
    ("path", "message"),
    [("missing", "no such file or folder"), ("empty", "no image in"), ("texts", r"a\.txt")],
)
def test_missing_and_empty_places_are_refused(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(FileNotFoundError, match=message):
        open_source(str(tmp_path / path))


def test_unknown_and_mixed_files_are_refused(tmp_path):
    for name in ("a.rar", "b.zip", "b.tar"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.rar: .* got rar"):
        open_source(str(tmp_path / "a.rar"))
    with pytest.raises(ValueError, match="got tar, zip"):
        open_source(f"{tmp_path}/b.*")


def test_braces_expand_numbers_and_alternatives():
    for command in ("cat ${DIR}_1.tar", "awk '{print $1,$2}' x", "cat {}" + "x" * 300):
        assert files.expand(f"pipe:{command}") == [f"pipe:{command}"]
    assert files.expand("pipe:cat {a,b}-{08..10}.tar") == [
        f"pipe:cat {letter}-{number}.tar" for letter in "ab" for number in ("08", "09", "10")
    ]


def test_huge_files_are_refused_unread(tmp_path):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(files.MAX_FILE_BYTES + 1)
    with pytest.raises(UnreadableImage, match="at most"):
        open_source(str(tmp_path)).read(0)


def test_streams_are_told_by_their_paths():
    assert is_stream("pipe:cat a.tar")
    assert is_stream("https://host/a.tar")
    assert is_stream("a.tar.gz")
    assert not is_stream("a.tar")
