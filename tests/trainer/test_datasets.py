import csv
import gzip
import io
import json
import logging
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.trainer.pictures import names, picture, write_tar
from trainer.datasets import main
from trainer.prepare import drawings, elpv, emoji, fashion_mnist, openclipart
from trainer.prepare.packages import integrity
from trainer.prepare.torchvision_set import class_folders, to_png


@pytest.fixture(autouse=True)
def _logging():
    """Put the root logger back to what it was before the command set it up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture(autouse=True)
def _no_clients(tmp_path, monkeypatch):
    """Tests fetch nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))


def entry(codepoints, category="People & Body", variations=None, missing=()):
    """A row of emoji.json."""
    has = {f"has_img_{v}": v not in missing for v in ("google", "twitter", "apple", "facebook")}
    variations = {tones: {"unified": form, **has} for tones, form in (variations or {}).items()}
    return {"unified": codepoints, "category": category, "skin_variations": variations, **has}


TABLE = [
    entry("1F44B", variations={"1F3FB": "1F44B-1F3FB", "1F3FF": "1F44B-1F3FF"}),
    entry("1F91D", variations={"1F3FB-1F3FF": "1FAF1-1F3FB-200D-1FAF2-1F3FF"}),
    entry("1F42F", "Animals & Nature"),
    entry("1F1EA-1F1FA", "Flags", missing=("twitter",)),
    entry("1F3FB", "Component"),
]


@pytest.fixture
def emoji_cache(tmp_path, monkeypatch):
    """Archives of two vendors as npm packs them, with four concepts."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for number, vendor in enumerate(("google", "twitter")):
        forms = [
            form
            for row in TABLE
            for form in (row, *row["skin_variations"].values())
            if form[f"has_img_{vendor}"]
        ]
        drawings = [
            (f"package/img/{vendor}/64/{form['unified'].lower()}.png", picture(10 * number + i))
            for i, form in enumerate(forms)
        ]
        members = [
            ("package/emoji.json", json.dumps(TABLE).encode()),
            (f"package/img/{vendor}/sheets/64.png", b"sheet"),
            *drawings,
        ]
        path = write_tar(cache / f"emoji-datasource-{vendor}-16.0.0.tgz", members, "w:gz")
        terms = emoji.TERMS[vendor]._replace(integrity=integrity(path, "sha512"))
        monkeypatch.setitem(emoji.TERMS, vendor, terms)
    return cache


def rows(out):
    with (out / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def run(*words):
    return main([str(word) for word in words])


def test_emoji_of_two_vendors_lie_by_split_and_category(tmp_path, emoji_cache, capsys):
    out = tmp_path / "emoji"
    assert run("emoji", "--out", out, "--cache", emoji_cache) == 0
    assert capsys.readouterr().out == f"{out}\n"
    files = {row["path"].partition("/")[2] for row in rows(out)}
    assert files == {
        *(f"people-body/{c}__{v}.png"
          for c in ("1f44b", "1f44b-1f3fb", "1f44b-1f3ff", "1f91d", "1faf1-1f3fb-200d-1faf2-1f3ff")
          for v in ("google", "twitter")),
        "animals-nature/1f42f__google.png", "animals-nature/1f42f__twitter.png",
        "flags/1f1ea-1f1fa__google.png",
    }  # fmt: skip
    for row in rows(out):
        assert (out / row["path"]).is_file()


def test_emoji_keep_the_vendors_bytes(tmp_path, emoji_cache):
    run("emoji", "--out", tmp_path / "e", "--cache", emoji_cache, "--vendors", "twitter")
    (found,) = (tmp_path / "e").rglob("1f44b__twitter.png")
    assert found.read_bytes() == picture(10)


def test_tones_belong_to_the_concept_that_lists_them_even_a_couples(tmp_path, emoji_cache):
    run("emoji", "--out", tmp_path / "e", "--cache", emoji_cache)
    of_concept = {}
    for row in rows(tmp_path / "e"):
        of_concept.setdefault(row["concept"], []).append(row)
    assert {row["variant"] for row in of_concept["1f44b"]} == {"", "1f3fb", "1f3ff"}
    assert {row["variant"] for row in of_concept["1f91d"]} == {"", "1f3fb-1f3ff"}
    assert all(len({row["split"] for row in group}) == 1 for group in of_concept.values())


def test_emoji_without_skin_tones(tmp_path, emoji_cache):
    out = tmp_path / "e"
    assert run("emoji", "--out", out, "--cache", emoji_cache, "--no-skin-tones") == 0
    assert {row["variant"] for row in rows(out)} == {""}
    assert len(rows(out)) == 7


def test_licence_stands_with_every_file(tmp_path, emoji_cache):
    out = tmp_path / "e"
    run("emoji", "--out", out, "--cache", emoji_cache)
    licences = {row["vendor"]: row["licence"] for row in rows(out)}
    assert licences == {"google": "Apache-2.0", "twitter": "CC-BY-4.0"}
    text = (out / "LICENCES.md").read_text()
    assert "Twemoji" in text
    assert "Noto" in text
    assert "Apple" not in text


def test_a_vendor_that_gives_no_licence_is_warned_of(tmp_path, capsys):
    assert run("emoji", "--out", tmp_path / "e", "--vendors", "apple") == 1
    said = capsys.readouterr().err
    assert "commercial use is not allowed" in said
    assert "npm is not installed" in said


def test_a_vendor_named_twice_is_refused(tmp_path, capsys):
    assert run("emoji", "--out", tmp_path / "e", "--vendors", "google", "google") == 2
    assert "each once" in capsys.readouterr().err


def test_an_archive_without_a_listed_drawing_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tgz", [("package/emoji.json", b"[]")], "w:gz")
    wanted = [emoji.Drawing("1f600", "1f600", "", "smileys-emotion")]
    with pytest.raises(ValueError, match=r"lacks 1 drawings, e\.g\. 1f600"):
        list(emoji.read_pictures(path, "google", wanted))


def idx(array):
    """An IDX file of bytes."""
    lengths = np.array(array.shape, ">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + lengths + array.astype(np.uint8).tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    """Six images to train on and three held out, the latter gzipped."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    for name, count, zip_it in (("train", 6, False), ("t10k", 3, True)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), np.arange(count)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{name}-{kind}-ubyte"
            if zip_it:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))
    return folder


def test_idx_files_become_classes_with_the_published_split(tmp_path, idx_folder):
    out = tmp_path / "f"
    assert run("fashion-mnist", "--out", out, "--source", idx_folder) == 0
    assert [row["path"] for row in rows(out)] == [
        "train/coat/00004.png", "train/dress/00003.png", "train/pullover/00002.png",
        "train/sandal/00005.png", "train/t-shirt/00000.png", "train/trouser/00001.png",
        "val/pullover/00002.png", "val/t-shirt/00000.png", "val/trouser/00001.png",
    ]  # fmt: skip
    expected = np.random.default_rng(0).integers(0, 256, (6, 28, 28))[3]
    np.testing.assert_array_equal(np.asarray(Image.open(out / "train/dress/00003.png")), expected)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train-images-idx3-ubyte", b"\0\0\x0d\x03", "does not begin as an IDX file"),
        ("train-images-idx3-ubyte", idx(np.zeros((6, 2, 2)))[:-1], "has 23 bytes, expected"),
        ("train-labels-idx1-ubyte", idx(np.full(6, 10)), "10 class names do not agree"),
        ("train-labels-idx1-ubyte", idx(np.zeros(5)), "6 images, 5 labels"),
        ("train-images-idx3-ubyte.gz", b"no gzip", "damaged"),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes(99))[:10] + b"\xff" * 30, "damaged"),
    ],
)
def test_idx_files_that_are_damaged_are_refused(tmp_path, idx_folder, name, data, message, capsys):
    (idx_folder / name).write_bytes(data)
    assert run("fashion-mnist", "--out", tmp_path / "f", "--source", idx_folder) == 2
    assert message in capsys.readouterr().err


def test_a_missing_idx_file_is_named(tmp_path, idx_folder, capsys):
    (idx_folder / "train-labels-idx1-ubyte").unlink()
    assert run("fashion-mnist", "--out", tmp_path / "f", "--source", idx_folder) == 2
    assert "neither train-labels-idx1-ubyte.gz nor" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The package with one photograph of every probability."""
    cache = tmp_path / "cache"
    cache.mkdir()
    path = cache / "elpv_dataset-1.0.0.post1-py3-none-any.whl"
    probabilities = ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")
    with zipfile.ZipFile(path, "w") as archive:
        table = [
            f"images/cell{i:04}.png  {p:<20}{'mono' if i % 2 else 'poly'}"
            for i, p in enumerate(probabilities)
        ]
        archive.writestr("elpv_dataset/data/labels.csv", "\n".join(table))
        for i in range(4):
            archive.writestr(f"elpv_dataset/data/images/cell{i:04}.png", picture(i, kind="PNG"))
    fields = {**vars(elpv.PACKAGE), "integrity": integrity(path)}
    monkeypatch.setattr(elpv, "PACKAGE", type(elpv.PACKAGE)(**fields))
    return cache


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("defect", ["functional", "functional", "defective", "defective"]),
        ("level", ["0-sound", "1-third", "2-two-thirds", "3-defective"]),
        (
            "level-type",
            ["0-sound-poly", "1-third-mono", "2-two-thirds-poly", "3-defective-mono"],
        ),
    ],
)
def test_solar_cells_by_defect_level_and_kind(tmp_path, wheel, labels, expected):
    out = tmp_path / "cells"
    assert run("elpv", "--out", out, "--cache", wheel, "--labels", labels) == 0
    found = {row["concept"]: row["label"] for row in rows(out)}
    assert [found[f"cell{i:04}"] for i in range(4)] == expected
    assert "not for commercial use" in (out / "LICENCES.md").read_text()


def test_equal_drawings_are_on_one_side(tmp_path):
    source = tmp_path / "clips"
    for path in ("animals/cat.png", "animals/big/cat.png", "food/cat.png", "food/pear.png"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(picture(1 if "cat" in path else 2, kind="PNG"))
    out = tmp_path / "o"
    assert run("openclipart", "--out", out, "--source", source) == 0
    assert {row["path"].partition("/")[2] for row in rows(out)} == {
        "animals/big__cat.png", "animals/cat.png", "food/cat.png", "food/pear.png",
    }  # fmt: skip
    cats = [row for row in rows(out) if "cat" in row["path"]]
    assert len({row["concept"] for row in cats}) == len({row["split"] for row in cats}) == 1


def test_a_folder_without_drawings_is_refused(tmp_path, capsys):
    assert run("openclipart", "--out", tmp_path / "o", "--source", tmp_path) == 2
    assert "holds no folders of PNG files" in capsys.readouterr().err


def test_a_torchvision_set_on_disk_becomes_a_folder(tmp_path, idx_folder):
    root = tmp_path / "root"
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in idx_folder.iterdir():
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        (raw / path.name.removesuffix(".gz")).write_bytes(data)
    out = tmp_path / "t"
    assert run("torchvision", "--set", "FashionMNIST", "--root", root, "--out", out) == 0
    assert {"train/t-shirt-top/0000000.png", "val/trouser/0000001.png"} <= {
        row["path"] for row in rows(out)
    }
    assert [row["split"] for row in rows(out)].count("train") == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "Nothing"), "torchvision has no set Nothing; it has CIFAR10"),
        (("--set", "CIFAR10"), "CIFAR10 is not in"),
        (("--set", "SVHN"), "SVHN is not in"),
        (("--set", "SVHN", "--train-split", "x"), "Unknown value 'x'"),
        (("--set", "EuroSAT"), "EuroSAT is not in"),
        (("--set", "CocoDetection"), "opens otherwise"),
        (("--set", "EMNIST", "--train-split", "digits"), "EMNIST does not name its parts by split"),
        (("--set", "DTD", "--val-split", "train"), "train_split and val_split are both 'train'"),
    ],
)
def test_a_torchvision_set_that_is_not_there_is_refused(tmp_path, words, message, capsys):
    assert run("torchvision", *words, "--root", tmp_path, "--out", tmp_path / "t") == 2
    assert message in capsys.readouterr().err


def test_a_missing_root_is_named(tmp_path, capsys):
    arguments = ("--set", "CIFAR10", "--root", tmp_path / "no", "--out", tmp_path / "t")
    assert run("torchvision", *arguments) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_class_names_become_folders():
    assert class_folders(["T-shirt/top", "0 - zero"]) == ["t-shirt-top", "0-zero"]
    assert class_folders([("great white shark", "white shark"), ("crane",)]) == [
        "great-white-shark", "crane",
    ]  # fmt: skip
    assert class_folders(["crane", "Crane", "?"]) == ["0000-crane", "0001-crane", "0002"]


def test_an_image_that_png_does_not_know_is_written_in_rgb():
    written = Image.open(io.BytesIO(to_png(Image.new("CMYK", (8, 8)))))
    assert written.mode == "RGB"


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(emoji, "fetch", stop)
    assert run("emoji", "--out", tmp_path / "e") == 130
    assert names(tmp_path) == []


@pytest.fixture
def drawings_cache(emoji_cache, idx_folder, tmp_path, monkeypatch):
    """The archives of what the model that ships learnt from."""
    folder = tmp_path / "openclipart"
    monkeypatch.setattr(openclipart, "INSTALLED", folder)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", idx_folder)
    monkeypatch.setattr(drawings, "CLOTHES_ONE_IN", 2)
    for name, data in {
        "food/pie.png": png(300, 200),
        "food/copy.png": png(300, 200),
        "food/damaged.png": png(300, 200)[:20],
        "signs/narrow.png": png(200, 40),
        "signs/tiny.png": png(20, 20),
        "signs/icon.png": png(64, 48),
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return emoji_cache


def png(width, height):
    buffer = io.BytesIO()
    Image.new("RGBA", (width, height), (200, 10, 10, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def test_drawings_are_those_that_may_be_used_and_are_worth_seeing(tmp_path, drawings_cache):
    out = tmp_path / "drawings"
    assert run("drawings", "--out", out, "--cache", drawings_cache) == 0
    sizes = set()
    for row in rows(out):
        with Image.open(out / row["path"]) as image:
            sizes |= {image.size} if row["label"] == "clip-art" else set()
    assert sizes == {(160, 107), (64, 48)}
    toned = [row for row in rows(out) if row["variant"] and row["concept"] == "1f44b"]
    assert {(row["vendor"], row["label"]) for row in toned} == {
        ("google", "emoji"), ("twitter", "emoji"),
    }  # fmt: skip
    assert len({row["variant"] for row in toned}) == 1
    clothes = [row for row in rows(out) if row["label"] == "clothes"]
    assert 0 < len(clothes) < 6
    assert {row["split"] for row in clothes} == {"train"}
    assert {"Apache-2.0", "CC-BY-4.0", "CC-PDDC", "MIT"} == {row["licence"] for row in rows(out)}
