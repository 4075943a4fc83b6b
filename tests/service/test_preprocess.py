import numpy as np
import pytest
from PIL import Image

from service.contract import PreprocessSpec
from service.images import DecodedImage, ImageLimits, decode
from service.parity import PHOTOGRAPHS
from service.preprocess import Geometry, least_side, place, preprocess
from service.regions import region_boxes
from tests.service import oracles
from tests.service.pictures import jpeg, scene
from tests.service.tiny_model import SPEC, constants

ODD_SIZES = [(37, 53), (256, 256), (255, 257), (640, 427), (427, 641), (33, 300), (301, 31)]
FITS = ["crop", "pad", "stretch"]


def decoded(image: Image.Image) -> DecodedImage:
    return DecodedImage(image, *image.size)


def centred_cosine(left, right) -> float:
    left, right = left.astype(float).ravel(), right.astype(float).ravel()
    left, right = left - left.mean(), right - right.mean()
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("spec", [PreprocessSpec(), SPEC, PreprocessSpec(resize=50, crop=33)])
def test_crop_equals_resize_then_centre_crop(size, spec):
    image = scene(*size)
    pixels = preprocess(decoded(image), spec, "crop").pixels
    expected = np.asarray(oracles.resize_then_crop(image, spec.resize, spec.crop), int)
    assert np.abs(pixels - expected).max() <= 2  # see test_resample
    assert np.abs(pixels - expected).mean() < 0.25


def test_crop_of_every_size_starts_where_torchvision_starts():
    for width in range(20, 90):
        for height in (20, 47, 88):
            geometry = place(width, height, SPEC, "crop")
            short = min(width, height)
            resized = int(36 * width / short), int(36 * height / short)
            left, top = (round((side - 32) / 2.0) for side in resized)
            assert geometry.left * resized[0] / width == pytest.approx(left)
            assert geometry.top * resized[1] / height == pytest.approx(top)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", ODD_SIZES)
def test_geometry_leads_there_and_back(size, fit):
    geometry = place(*size, PreprocessSpec(), fit)
    points = np.random.default_rng(0).uniform(0, 224, (20, 2))
    np.testing.assert_allclose(geometry.to_model(geometry.to_source(points)), points, atol=1e-9)


def test_geometry_by_hand():
    # 100 x 50 px, short side to 36: 72 x 36; the centre 32 x 32 begins at (20, 2).
    geometry = place(100, 50, SPEC, "crop")
    assert geometry == Geometry(100, 50, 20 * 100 / 72, 2 * 50 / 36, 100 / 72, 50 / 36)


@pytest.mark.parametrize("fit", FITS)
def test_a_marked_place_is_found_at_its_source_pixel(fit):
    image = Image.new("RGB", (120, 90))
    image.paste("white", (60, 45, 72, 54))
    prepared = preprocess(decoded(image), SPEC, fit)
    bright = prepared.pixels[..., 0].astype(float)
    if fit == "pad":
        bright[:4] = bright[28:] = 0  # the border is mean grey
    y, x = np.mgrid[0:32, 0:32] + 0.5
    centre = np.array([(bright * x).sum(), (bright * y).sum()]) / bright.sum()
    np.testing.assert_allclose(prepared.geometry.to_source(centre), (66, 49.5), atol=0.5)


def test_stretch_shows_the_whole_picture():
    image = scene(90, 61)
    prepared = preprocess(decoded(image), SPEC, "stretch")
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), int)
    assert np.abs(prepared.pixels - expected).max() <= 1
    assert prepared.geometry == Geometry(90, 61, 0.0, 0.0, 90 / 32, 61 / 32)


def test_pad_shows_the_whole_picture_centred_on_the_mean_colour():
    image = scene(80, 40)
    pixels = preprocess(decoded(image), SPEC, "pad").pixels
    expected = np.asarray(image.resize((32, 16), Image.Resampling.BICUBIC), int)
    assert np.abs(pixels[8:24] - expected).max() <= 1
    border = np.concatenate([pixels[:8], pixels[24:]])
    assert (border == (124, 116, 104)).all()  # 255 * mean, rounded


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("fit", FITS)
def test_the_narrowest_pictures_are_placed(size, fit):
    prepared = preprocess(decoded(scene(*size)), SPEC, fit)
    assert prepared.pixels.shape == (32, 32, 3)
    boxes = region_boxes(prepared.geometry, (4, 4), 32)
    assert (boxes >= 0).all()
    assert (boxes <= (*size, *size)).all()


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("fit", FITS)
def test_decoding_at_a_fraction_keeps_the_embedding(path, fit):
    data = path.read_bytes()
    whole = decode(data, ImageLimits())
    scaled = decode(data, ImageLimits(), least_side=least_side(SPEC))
    assert scaled.image.width <= whole.image.width / 2  # else this test shows nothing
    assert (scaled.width, scaled.height) == whole.image.size
    embedding, expected = (
        oracles.tiny_model(preprocess(image, SPEC, fit).pixels, constants())["embedding"]
        for image in (scaled, whole)
    )
    assert oracles.cosine(embedding, expected) > 0.999


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_decoding_at_a_fraction_keeps_the_pixels_of_the_published_size(path):
    with Image.open(path) as photograph:
        data = jpeg(photograph.resize((1601, 1067), Image.Resampling.BICUBIC))
    scaled = decode(data, ImageLimits(), least_side=least_side(PreprocessSpec()))
    assert scaled.image.size == (801, 534)
    pixels, expected = (
        preprocess(image, PreprocessSpec(), "crop").pixels.astype(float)
        for image in (scaled, decode(data, ImageLimits()))
    )
    assert np.abs(pixels - expected).mean() < 2  # of 255
    assert centred_cosine(pixels, expected) > 0.998
