import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.augment import crop_box, pillow_views
from esvit.backbones.vision import torchvision
from service.images import DecodedImage, ImageLimits, decode
from trainer import augment
from trainer.pixel_ops import PixelParameters, alter_pixels

PHOTOGRAPHS = Path(__file__).parents[2] / "service" / "photographs"
PUBLISHED = augment.global_views() + augment.local_views()
SMALL = augment.global_views(48) + augment.local_views(32, count=2)


def photograph(name="cat", size=None):
    with Image.open(PHOTOGRAPHS / f"{name}.jpg") as file:
        image = file.convert("RGB")
    image = image.resize(size) if size else image
    return DecodedImage(image, *image.size)


def draw_rows(specs, n):
    rng = np.random.default_rng(0)
    rows = [augment.draw_pixel_parameters(rng, specs) for _ in range(n)]
    return PixelParameters(*(torch.stack(column) for column in zip(*rows, strict=True)))


def test_published_views_have_the_published_numbers():
    assert [spec.size for spec in PUBLISHED] == [224] * 2 + [96] * 8
    assert [spec.scale for spec in PUBLISHED] == [(0.4, 1.0)] * 2 + [(0.05, 0.4)] * 8
    assert [spec.blur for spec in PUBLISHED] == [1.0, 0.1] + [0.5] * 8
    assert [spec.solarize for spec in PUBLISHED] == [0.0, 0.2] + [0.0] * 8


def test_applied_probabilities_are_the_published_ones():
    n = 4000
    rows = draw_rows(PUBLISHED, n)
    assert rows.factors.shape == (n, 10, 4)

    def holds(share, probability):
        return abs(share - probability) <= 4 * (probability * (1 - probability) / n) ** 0.5

    for view, spec in enumerate(PUBLISHED):
        assert holds((rows.order[:, view, 0] >= 0).float().mean().item(), 0.8)
        assert holds(rows.grey[:, view].float().mean().item(), 0.2)
        assert holds(rows.blur[:, view].any(1).float().mean().item(), spec.blur)
        assert holds(rows.solarize[:, view].float().mean().item(), spec.solarize)


def test_every_order_of_the_jitter_is_as_likely():
    orders = draw_rows(PUBLISHED, 1000).order.flatten(0, 1)
    applied = orders[orders[:, 0] >= 0]
    found, counts = applied.unique(dim=0, return_counts=True)
    assert len(found) == 24
    expected = len(applied) / 24
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_factors_and_radii_are_uniform_over_their_ranges():
    rows = draw_rows(PUBLISHED[:1], 4000)
    factors = rows.factors[:, 0]
    for column, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]):
        values = (factors[:, column] - low) / (high - low)
        quarters = values.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
        assert quarters.tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.03)
    variance = rows.blur[:, 0] @ torch.arange(-6.0, 7.0) ** 2
    quarters = variance.sqrt().quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert quarters.tolist() == pytest.approx([0.1, 0.575, 1.05, 1.525, 2.0], abs=0.06)


@pytest.mark.parametrize("size", [(500, 375), (300, 900)])
@pytest.mark.parametrize("view", [0, 2])
def test_crops_are_distributed_as_in_the_written_out_draw(size, view):
    n = 6000
    spec = PUBLISHED[view]
    rng, reference = np.random.default_rng(1), random.Random(1)
    ours = np.array(augment.draw_boxes(rng, size, (spec,) * n), dtype=float)
    theirs = np.array([crop_box(*size, spec.scale, reference) for _ in range(n)], dtype=float)
    shares = np.linspace(0.05, 0.95, 10)
    for measure in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 2] / box[:, 3]):
        a, b = np.quantile(measure(ours), shares), np.quantile(measure(theirs), shares)
        assert a == pytest.approx(b, rel=0.05)
    for column in (0, 1):
        off = abs(ours[:, column].mean() - theirs[:, column].mean())
        assert off < 4 * theirs[:, column].std() * (2 / n) ** 0.5


def test_crops_are_distributed_as_torchvisions():
    n = 3000
    image = torch.zeros(1, 375, 500)
    torch.manual_seed(0)
    draw = torchvision.transforms.RandomResizedCrop.get_params
    theirs = np.array([draw(image, (0.05, 0.4), (3 / 4, 4 / 3)) for _ in range(n)], dtype=float)
    ours = np.array(
        augment.draw_boxes(np.random.default_rng(0), (500, 375), PUBLISHED[2:3] * n), dtype=float
    )
    shares = np.linspace(0.05, 0.95, 10)
    areas = np.quantile(theirs[:, 2] * theirs[:, 3], shares)
    assert np.quantile(ours[:, 2] * ours[:, 3], shares) == pytest.approx(areas, rel=0.06)


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (1, 1), (3, 2), (2, 3)])
def test_extreme_images_give_crops_inside_them(size):
    boxes = augment.draw_boxes(np.random.default_rng(0), size, PUBLISHED * 20)
    assert all(box.width >= 1 and box.height >= 1 for box in boxes)
    assert all(box.left >= 0 and box.left + box.width <= size[0] for box in boxes)
    assert all(box.top >= 0 and box.top + box.height <= size[1] for box in boxes)
    image = DecodedImage(Image.new("RGB", size), *size)
    views = augment.make_views(image, SMALL, np.random.default_rng(0), alter=True)
    assert [view.shape for view in views.pixels] == [(3, 48, 48)] * 2 + [(3, 32, 32)] * 2


def test_a_crop_that_never_fits_is_the_centre_as_torchvisions():
    spec = augment.ViewSpec(size=8, scale=(0.9, 1.0), blur=0.0)
    (box,) = augment.draw_boxes(np.random.default_rng(0), (10, 1000), (spec,))
    assert box == (0, 493, 10, 13)
    (box,) = augment.draw_boxes(np.random.default_rng(0), (1000, 10), (spec,))
    assert box == (493, 0, 13, 10)


def test_a_cut_equals_pillows_crop_and_resize():
    image = photograph().image
    source = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for box, size in [((30, 20, 260, 250), 224), ((100, 50, 150, 180), 96), ((5, 5, 60, 50), 96)]:
        ours = augment.cut(source, augment.Box(*box), size)
        left, top, width, height = box
        cropped = image.crop((left, top, left + width, top + height))
        theirs = np.array(cropped.resize((size, size), Image.Resampling.BICUBIC))
        off = (ours.permute(1, 2, 0).int() - torch.from_numpy(theirs).int()).abs()
        assert off.max() <= 1
        functional = torchvision.transforms.v2.functional
        crop = source[:, top : top + height, left : left + width]
        v2 = functional.resize(
            crop, [size, size], functional.InterpolationMode.BICUBIC, antialias=True
        )
        assert torch.equal(ours, v2)


def test_the_same_generator_gives_the_same_views():
    first = augment.make_views(photograph(), SMALL, np.random.default_rng([1, 2]), alter=True)
    again = augment.make_views(photograph(), SMALL, np.random.default_rng([1, 2]), alter=True)
    other = augment.make_views(photograph(), SMALL, np.random.default_rng([1, 3]), alter=True)
    assert all(torch.equal(a, b) for a, b in zip(first.pixels, again.pixels, strict=True))
    assert not torch.equal(first.pixels[0], other.pixels[0])


def test_altering_later_equals_altering_in_the_worker():
    done = augment.make_views(photograph(), SMALL, np.random.default_rng(3), alter=True)
    later = augment.make_views(photograph(), SMALL, np.random.default_rng(3), alter=False)
    for view, pixels in enumerate(later.pixels):
        row = later.parameters.rows(slice(view, view + 1))
        assert torch.equal(alter_pixels(pixels[None], row)[0], done.pixels[view])


@pytest.mark.slow
def test_views_look_like_pillows_pipeline_in_mean_and_spread():
    n = 100
    image = photograph("coffee", (300, 200))
    theirs = [pillow_views(image.image, seed) for seed in range(n)]
    rng = np.random.default_rng(0)
    ours = [augment.make_views(image, PUBLISHED, rng, alter=True).pixels for _ in range(n)]
    for views in (slice(0, 1), slice(1, 2), slice(2, 10)):
        a = np.array([[v.float().mean(), v.float().std()] for vs in ours for v in vs[views]])
        b = np.array([[np.mean(v), np.std(v)] for vs in theirs for v in vs[views]])
        noise = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        assert (np.abs(a.mean(0) - b.mean(0)) <= 4 * noise + 0.5).all()
        assert a.std(0) == pytest.approx(b.std(0), rel=0.15)


def test_flips_happen_half_the_time():
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).convert("RGB")
    specs = (augment.ViewSpec(size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0), blur=0.0),)
    rng = np.random.default_rng(0)
    views = [
        augment.make_views(DecodedImage(image, 64, 64), specs, rng, alter=False).pixels[0]
        for _ in range(400)
    ]
    flipped = sum(bool(view[0, 0, 0] > view[0, 0, -1]) for view in views)
    assert 160 <= flipped <= 240


def test_a_jpeg_shrunk_while_decoding_gives_nearly_the_same_views():
    buffer = io.BytesIO()
    photograph().image.resize((2000, 1500), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    limits = ImageLimits()
    full = decode(buffer.getvalue(), limits)
    shrunk = decode(buffer.getvalue(), limits, least_side=augment.least_side(PUBLISHED))
    assert shrunk.image.width < full.image.width
    off = []
    for seed in range(10):
        a = augment.make_views(full, PUBLISHED, np.random.default_rng(seed), alter=False)
        b = augment.make_views(shrunk, PUBLISHED, np.random.default_rng(seed), alter=False)
        off += [
            (one.float() - other.float()).abs().mean().item()
            for one, other in zip(a.pixels, b.pixels, strict=True)
        ]
    # Half a pixel of the shrunk image is what a crop may move by.
    assert np.mean(off) < 1.5
    assert max(off) < 4.0


def test_decoding_may_not_shrink_below_what_the_smallest_crop_needs():
    # 96 px from a crop of 5 % of the area with ratio 3/4: 96 / sqrt(0.05 * 0.75)
    assert augment.least_side(PUBLISHED) == 496
    assert augment.least_side(augment.global_views()) == 409


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 0.4)),
        ("ratio", (2.0, 1.0)),
        ("blur", 1.5),
        ("strengths", (0.4, 0.4, 0.2, 0.5)),
        ("blur_radius", (0.1, 3.0)),
    ],
)
def test_impossible_views_are_refused(field, value):
    fields = {"size": 96, "scale": (0.05, 0.4), "blur": 0.5} | {field: value}
    with pytest.raises(ValueError, match=field):
        augment.ViewSpec(**fields)
