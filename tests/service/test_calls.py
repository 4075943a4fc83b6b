import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service import calls
from service.calls import Refused, as_file, batches, read_refusal
from tests.service.known import SQUARE, A
from tests.service.pictures import png, scene


def opened(data):
    return Image.open(io.BytesIO(data))


def test_files_are_sent_as_they_are(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"anything")
    assert as_file(path) == as_file(str(path)) == as_file(b"anything") == b"anything"


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "1", "P"])
def test_pictures_in_memory_become_lossless_files(mode):
    picture = scene().convert(mode)
    np.testing.assert_array_equal(opened(as_file(picture)).convert("RGBA"), picture.convert("RGBA"))


def test_modes_that_no_png_holds_become_rgb():
    assert opened(as_file(scene().convert("CMYK"))).mode == "RGB"


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_arrays_become_lossless_files(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(np.asarray(opened(as_file(array))), array)


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8)])
def test_other_arrays_are_no_pictures(array):
    with pytest.raises(TypeError, match="expected uint8"):
        as_file(array)


def test_other_things_are_no_pictures():
    with pytest.raises(TypeError, match="picture is a int"):
        as_file(7)


def test_a_picture_in_memory_keeps_its_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = opened(png(scene(96, 72).transpose(Image.Transpose.ROTATE_90), exif=exif))
    np.testing.assert_array_equal(np.asarray(opened(as_file(turned))), np.asarray(scene(96, 72)))


def test_batches_are_bounded_in_pictures_and_bytes(monkeypatch):
    monkeypatch.setattr(calls, "MAX_BATCH_BYTES", 10)
    files = [b"1" * size for size in (4, 4, 4, 30, 1, 1, 1, 1)]
    sizes = [[len(file) for file in batch] for batch in batches(files, 3)]
    assert sizes == [[4, 4], [4], [30], [1, 1, 1], [1]]


def test_a_path_that_cannot_be_read_is_refused_in_its_place(tmp_path):
    ((first, second),) = batches([b"a", tmp_path / "missing.jpg"], 4)
    assert first == b"a"
    assert isinstance(second, Refused)
    assert second.code == "unreadable_file"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error": "x"}', b""])
def test_an_answer_that_is_not_the_services_is_a_refusal_all_the_same(body):
    refusal = read_refusal(502, body)
    assert (refusal.code, refusal.status) == ("unknown", 502)


@pytest.mark.parametrize(
    "one", ["a.jpg", Path("a.jpg"), A, SQUARE, np.asarray(SQUARE), np.asarray(SQUARE)[..., 0]]
)
def test_one_picture_is_not_several(one):
    with pytest.raises(TypeError, match="expected a list of pictures"):
        batches(one, 4)


def test_an_array_of_pictures_is_several():
    pictures = np.stack([np.asarray(SQUARE)] * 3)
    assert [len(batch) for batch in batches(pictures, 2)] == [2, 1]


@pytest.mark.parametrize("address", ["https://example.org/a.jpg", "data:image/png;base64,AA=="])
def test_an_address_is_no_path(address):
    ((refused,),) = batches([address], 4)
    assert refused.code == "unreadable_file"
    assert "expected a path" in str(refused)
