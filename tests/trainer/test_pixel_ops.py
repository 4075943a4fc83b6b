import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks.augment import shift_hue
from trainer import pixel_ops

PHOTOGRAPHS = Path(__file__).parents[2] / "service" / "photographs"


@pytest.fixture(scope="module", params=["cat", "coffee", "rocket"])
def photograph(request):
    with Image.open(PHOTOGRAPHS / f"{request.param}.jpg") as image:
        return image.convert("RGB").resize((100, 90))


def to_levels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().contiguous()


def changed(image, change_, *amount):
    levels = to_levels(image)
    change_(levels, torch.tensor(amount))
    return levels


def difference(levels, image):
    return (levels - to_levels(image)).abs()


def parameters(n, *, order=(-1, -1, -1, -1), factors=(1.0, 1.0, 1.0, 0.0)):
    return pixel_ops.PixelParameters(
        order=torch.tensor([order] * n, dtype=torch.int8),
        factors=torch.tensor([factors] * n),
        grey=torch.zeros(n, dtype=torch.bool),
        blur=torch.zeros(n, 13),
        solarize=torch.zeros(n, dtype=torch.bool),
    )


@pytest.mark.parametrize("factor", [0.6, 0.83, 1.0, 1.17, 1.4])
@pytest.mark.parametrize(
    ("change_", "enhancer"),
    [
        (pixel_ops.adjust_brightness_, ImageEnhance.Brightness),
        (pixel_ops.adjust_contrast_, ImageEnhance.Contrast),
        (pixel_ops.adjust_saturation_, ImageEnhance.Color),
    ],
)
def test_enhancements_equal_pillows(photograph, change_, enhancer, factor):
    off = difference(changed(photograph, change_, factor), enhancer(photograph).enhance(factor))
    assert off.max() <= 1
    assert off.mean() < 0.01


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.05, 0.1, 0.3])
def test_hue_is_near_pillows_256_steps(photograph, shift):
    off = difference(
        changed(photograph, pixel_ops.adjust_hue_, shift), shift_hue(photograph, shift)
    )
    assert off.mean() < 1.2


@pytest.mark.parametrize("shift", [-1 / 3, -0.1, 0.0, 0.07, 1 / 3])
def test_hue_equals_the_written_out_conversion(shift):
    torch.manual_seed(0)
    levels = torch.randint(0, 256, (1, 3, 12, 12)).float()
    levels[0, :, :4] = levels[0, :1, :4]  # grey: its hue is undefined
    turned = levels.clone()
    pixel_ops.adjust_hue_(turned, torch.tensor([shift]))
    for before, after in zip(
        levels[0].flatten(1).T.tolist(), turned[0].flatten(1).T.tolist(), strict=True
    ):
        hue, saturation, value = colorsys.rgb_to_hsv(*[level / 255 for level in before])
        expected = colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)
        assert after == pytest.approx([255 * level for level in expected], abs=0.501)


def test_grey_and_solarize_equal_pillows(photograph):
    levels = to_levels(photograph)
    pixel_ops.solarize_(levels, torch.ones(1))
    assert difference(levels, ImageOps.solarize(photograph)).max() == 0
    levels = to_levels(photograph)
    pixel_ops.take_colour_away_(levels, torch.ones(1))
    off = difference(levels, photograph.convert("L").convert("RGB"))
    assert off.max() <= 1
    assert off.mean() < 0.01


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 1.7, 2.0])
def test_blur_is_pillows(photograph, radius):
    levels = to_levels(photograph)
    pixel_ops.blur_(levels, torch.from_numpy(pixel_ops.blur_kernels(np.array([radius]))))
    off = difference(levels, photograph.filter(ImageFilter.GaussianBlur(radius)))
    assert off.mean() < 0.7
    # Pillow rounds after each of six filters, and repeats the edge anew before each.
    assert off[..., 6:-6, 6:-6].max() <= 3


def test_blur_kernels_have_the_variance_asked_for():
    radius = np.array([0.1, 0.7, 1.0, 1.5, 2.0])
    kernels = pixel_ops.blur_kernels(radius).astype(np.float64)
    assert kernels.sum(1) == pytest.approx(np.ones(5), abs=1e-6)
    assert kernels @ np.arange(-6, 7) ** 2 == pytest.approx(radius**2, rel=1e-5)


def test_no_radius_gives_no_kernel_and_too_large_is_refused():
    assert not pixel_ops.blur_kernels(np.zeros(2)).any()
    with pytest.raises(ValueError, match=r"blur radius is 2\.5"):
        pixel_ops.blur_kernels(np.array([0.5, 2.5]))


@pytest.mark.parametrize("shape", [(96, 96), (50, 33), (5, 7)])
def test_blur_equals_a_written_out_filter(shape):
    torch.manual_seed(0)
    levels = torch.rand(2, 3, *shape) * 255
    kernels = torch.from_numpy(pixel_ops.blur_kernels(np.array([0.8, 1.9])))
    expected = torch.nn.functional.pad(levels, (6, 6, 6, 6), mode="replicate")
    for view in range(2):
        for axis in (2, 3):
            padded = expected[view].clone()
            expected[view] = sum(
                kernels[view, tap + 6] * padded.roll(tap, axis - 1) for tap in range(-6, 7)
            )
    pixel_ops.blur_(levels, kernels)
    torch.testing.assert_close(levels, expected[..., 6:-6, 6:-6].round(), atol=1.0, rtol=0)
    assert (levels - expected[..., 6:-6, 6:-6]).abs().max() < 0.51


def test_neutral_parameters_change_nothing():
    pixels = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    assert torch.equal(pixel_ops.alter_pixels(pixels, parameters(3)), pixels)


def test_operations_follow_each_views_own_order():
    pixels = torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8)
    factors = (1.4, 0.6, 1.0, 0.0)
    first = pixel_ops.alter_pixels(pixels, parameters(1, order=(0, 1, -1, -1), factors=factors))
    levels = pixels.float()
    pixel_ops.adjust_brightness_(levels, torch.tensor([1.4]))
    pixel_ops.adjust_contrast_(levels, torch.tensor([0.6]))
    assert torch.equal(first, levels.byte())
    other = pixel_ops.alter_pixels(pixels, parameters(1, order=(1, 0, -1, -1), factors=factors))
    assert not torch.equal(first, other)


def test_a_batch_agrees_with_views_alone():
    rng = np.random.default_rng(0)
    n = 12
    pixels = torch.randint(0, 256, (n, 3, 33, 33), dtype=torch.uint8)
    drawn = pixel_ops.PixelParameters(
        order=torch.from_numpy(rng.random((n, 4)).argsort(1).astype(np.int8)),
        factors=torch.from_numpy((rng.random((n, 4)) * [1, 1, 1, 0.2]).astype(np.float32)),
        grey=torch.from_numpy(rng.random(n) < 0.3),
        blur=torch.from_numpy(pixel_ops.blur_kernels(rng.random(n) * 2 * (rng.random(n) < 0.5))),
        solarize=torch.from_numpy(rng.random(n) < 0.5),
    )
    together = pixel_ops.alter_pixels(pixels, drawn)
    for view in range(n):
        alone = pixel_ops.alter_pixels(pixels[view : view + 1], drawn.rows(slice(view, view + 1)))
        # Sums of floats in another order move a mean or a weighted sum over a whole level.
        assert (alone[0].int() - together[view].int()).abs().max() <= 2


def test_normalize_scales_subtracts_and_divides():
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    normal = pixel_ops.normalize(pixels, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    expected = [(0 - 0.5) / 0.2, (128 / 255 - 0.4) / 0.25, (1 - 0.3) / 0.5]
    assert normal.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="expected uint8"):
        pixel_ops.alter_pixels(torch.zeros(1, 3, 4, 4), parameters(1))
