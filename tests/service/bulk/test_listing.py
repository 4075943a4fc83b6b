import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.bulk.listing import list_pictures, load_listing

NAMES = ["0.png", "1.png", "2.png", "3.png", "4.png", "deep/a.JPG", "deep/z.png"]


def names(listing):
    return [place.name for place in listing.places(0, len(listing))]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache.parquet"


@pytest.fixture
def tars(pictures, tmp_path):
    """The same pictures in two tar files."""
    for number, members in enumerate((NAMES[:3], NAMES[3:])):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for name in (*members, "notes.txt"):
                archive.add(pictures / name, name)
    return f"{tmp_path}/*.tar"


def test_a_folder_is_listed_by_folder_and_name(pictures, cache):
    listing = list_pictures(str(pictures), cache)
    assert names(listing) == NAMES
    for place in listing.places(0, 7):
        assert place.read() == (pictures / place.name).read_bytes()


def test_tar_files_hold_the_same_pictures(pictures, tars, cache):
    listing = list_pictures(tars, cache)
    assert names(listing) == [f"0.tar/{name}" for name in NAMES[:3]] + [
        f"1.tar/{name}" for name in NAMES[3:]
    ]
    for place, name in zip(listing.places(0, 7), NAMES, strict=True):
        assert place.read() == (pictures / name).read_bytes()


def test_a_list_names_paths_in_its_order(pictures, tmp_path, cache):
    paths = [str(pictures / name) for name in reversed(NAMES)]
    (tmp_path / "list.txt").write_text("\n".join([*paths, "", "missing.png"]) + "\n")
    listing = list_pictures(str(tmp_path / "list.txt"), cache)
    assert names(listing) == [*paths, "missing.png"]
    assert listing.places(0, 1)[0].read() == (pictures / NAMES[-1]).read_bytes()


def test_names_that_are_no_text_are_listed(tmp_path, cache):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    (place,) = list_pictures(str(folder), cache).places(0, 1)
    assert place.read() == b"x"


def test_a_kept_list_is_used_until_something_changes(pictures, cache):
    first = list_pictures(str(pictures), cache)
    written = cache.stat().st_mtime_ns
    assert names(list_pictures(str(pictures), cache)) == names(first) == names(load_listing(cache))
    assert cache.stat().st_mtime_ns == written
    (pictures / "deep" / "b.png").write_bytes(b"")
    os.utime(pictures / "deep", ns=(1, 1))
    assert len(list_pictures(str(pictures), cache)) == 8


def test_a_kept_list_of_another_source_is_not_used(pictures, tars, cache):
    list_pictures(str(pictures), cache)
    assert names(list_pictures(tars, cache))[0] == "0.tar/0.png"


def test_a_digest_tells_pictures_apart(pictures, cache):
    listing = list_pictures(str(pictures), cache)
    assert listing.digest(0, 3) != listing.digest(0, 4)
    assert listing.digest(0, 3) == list_pictures(str(pictures), cache).digest(0, 3)


def test_what_cannot_be_listed_says_why(tmp_path, cache):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no picture in"):
        list_pictures(str(tmp_path / "empty"), cache)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        list_pictures(str(tmp_path / "missing"), cache)
    for name in ("a.tar", "b.zip", "c.zip"):
        (tmp_path / name).write_bytes(b"PK\3\4\0\0")
    with pytest.raises(ValueError, match="no uncompressed tar file"):
        list_pictures(str(tmp_path / "a.tar"), cache)
    with pytest.raises(ValueError, match="no list of paths"):
        list_pictures(str(tmp_path / "b.zip"), cache)
    with pytest.raises(ValueError, match=r"not all \.tar files"):
        list_pictures(str(tmp_path / "*.zip"), cache)


def test_a_file_that_shrank_or_is_too_large_is_not_read(pictures, tars, tmp_path, cache):
    place = list_pictures(tars, cache).places(6, 7)[0]
    os.truncate(tmp_path / "1.tar", place.offset + 3)
    with pytest.raises(OSError, match="cut off"):
        place.read()
    with pytest.raises(OSError, match="at most"):
        place._replace(size=2**40).read()


def test_links_to_folders_are_followed_and_lead_nowhere_twice(tmp_path, pictures, cache):
    root = tmp_path / "root"
    (root / "own").mkdir(parents=True)
    (root / "own" / "x.png").write_bytes(b"x")
    (root / "own" / "back").symlink_to(root)
    (root / "shared").symlink_to(pictures)
    found = names(list_pictures(str(root), cache))
    assert sorted(found) == sorted(["own/x.png", *(f"shared/{name}" for name in NAMES)])


def test_a_list_of_something_else_is_made_anew(pictures, cache):
    pq.write_table(pa.table({"a": [1]}), cache)
    assert names(list_pictures(str(pictures), cache)) == NAMES
