import numpy as np
import pytest
from PIL import Image, ImageCms

from service.colours import MAX_PROFILE_BYTES, _transform, to_srgb
from service.images import ImageLimits, decode
from tests.service.pictures import jpeg, png, scene
from tests.service.profiles import in_space, profile


def soft(seed: int = 0) -> Image.Image:
    """Give a picture without the darkest tones, of which 8 bits hold few in a plain power."""
    return Image.blend(scene(60, 40, seed), Image.new("RGB", (60, 40), "white"), 0.3)


def difference(image: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(image, np.int16) - np.asarray(other, np.int16)).max())


@pytest.mark.parametrize("space", ["Display P3", "Adobe RGB"])
def test_a_profile_leads_back_to_srgb(space):
    elsewhere = in_space(soft(), space)
    assert difference(elsewhere, soft()) > 10
    back = decode(png(elsewhere, icc_profile=profile(space)), ImageLimits()).image
    assert difference(back, soft()) <= 3


def test_srgb_is_recognised_and_left_as_it_is():
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = soft()
    assert difference(to_srgb(image, own), image) == 0
    assert _transform(own, "RGB") is None


@pytest.mark.parametrize(
    "bad",
    [
        *[b"", b"x", b"\0" * 128, profile("sRGB")[:140], profile("Adobe RGB", b"GRAY")],
        *[profile("Adobe RGB", b"CMYK"), b"\xff" * 5000, 7, None],
        bytes(MAX_PROFILE_BYTES + 1),
    ],
    ids=range(10),
)
def test_a_profile_that_is_none_is_ignored(bad):
    image = soft()
    assert difference(to_srgb(image, bad), image) == 0


def test_a_grey_profile_is_obeyed():
    levels = np.arange(256, dtype=np.uint8)[None]
    got = np.asarray(to_srgb(Image.fromarray(levels), profile("sRGB", b"GRAY")))[0]
    light = (levels[0] / 255) ** 2.2
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(got - 255 * srgb[:, None]).max() <= 2


def test_a_profile_of_another_kind_of_picture_is_ignored():
    grey = Image.new("L", (3, 3), 77)
    assert to_srgb(grey, profile("Adobe RGB")).getpixel((1, 1)) == (77, 77, 77)
    cmyk = Image.new("CMYK", (3, 3), (10, 20, 30, 40))
    assert difference(to_srgb(cmyk, profile("Adobe RGB")), cmyk.convert("RGB")) == 0


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_a_damaged_profile_never_fails_a_picture(position):
    damaged = bytearray(profile("Adobe RGB"))
    damaged[position % len(damaged)] ^= 0xFF
    data = jpeg(soft(), icc_profile=bytes(damaged))
    assert decode(data, ImageLimits()).image.size == (60, 40)


def test_what_is_rgb_without_a_profile_is_not_copied():
    image = scene(8, 8)
    assert to_srgb(image, None) is image
