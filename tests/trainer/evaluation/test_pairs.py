import io

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.sources import open_source
from trainer.evaluation.images import preprocessing
from trainer.evaluation.pairs import (
    LEAST_SEEN,
    Crop,
    PairDataset,
    counterparts,
    draw_crops,
)


def gradient(width, height):
    """A picture whose red says the column and whose green says the row."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([columns, rows, np.zeros_like(rows)], -1).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_points_go_to_the_square_and_back():
    crop = Crop(0.1, 0.2, 0.5, 0.25, is_flipped=True)
    points = np.random.default_rng(0).random((5, 2))
    np.testing.assert_allclose(crop.from_square(crop.to_square(points)), points)
    np.testing.assert_allclose(crop.to_square(np.array([0.0, 0.0])), [0.6, 0.2])


def test_crops_lie_in_the_square_see_each_other_and_are_the_same_every_time():
    flips = set()
    for number in range(50):
        first, second = draw_crops(number)
        assert (first, second) == draw_crops(number)
        for crop in (first, second):
            assert crop.left >= 0 <= crop.top
            assert crop.left + crop.width <= 1 >= crop.top + crop.height
        seen = (~counterparts([(first, second)], 50).isnan().any(-1)).double().mean()
        assert seen >= LEAST_SEEN - 0.03
        flips.add((first.is_flipped, second.is_flipped))
    assert len(flips) == 4


@pytest.mark.parametrize("size", [(200, 200), (301, 157)])
def test_counterpart_shows_the_same_colour(tmp_path, size):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(gradient(*size))
    source = open_source(str(tmp_path))
    side, S = 7, 70
    dataset = PairDataset(source, range(4), preprocessing(S))
    for position in range(4):
        pixels, _ = dataset[position]
        wanted = counterparts([draw_crops(position)], side)[0] / side
        middles = pixels[0].float().unflatten(1, (side, -1)).unflatten(3, (side, -1)).mean((2, 4))
        for region, (x, y) in enumerate(wanted.tolist()):
            if x != x or not 0.02 < x < 0.98 or not 0.02 < y < 0.98:
                continue
            there = pixels[1][:, int(y * S), int(x * S)].float()
            here = middles[:, region // side, region % side]
            assert (there - here).abs().max() < 5


def test_bad_image_is_none(tmp_path):
    (tmp_path / "1.png").write_bytes(b"damaged")
    assert PairDataset(open_source(str(tmp_path)), [0], preprocessing(32))[0] is None


def test_what_the_second_view_does_not_see_is_nan():
    first = Crop(0.0, 0.0, 1.0, 1.0, is_flipped=False)
    second = Crop(0.5, 0.0, 0.5, 1.0, is_flipped=False)
    found = counterparts([(first, second)], 2)[0]
    assert torch.isnan(found[[0, 2]]).all()
    torch.testing.assert_close(found[[1, 3]], torch.tensor([[1.0, 0.5], [1.0, 1.5]]))
