import numpy as np
import pytest
from PIL import Image

from trainer.figures.page import MARGIN
from trainer.figures.regions import draw_regions, principal_components
from trainer.figures.seen import Seen


def seen(side=96):
    return Seen(Image.new("RGB", (side, side)), None, None)


def test_equal_features_of_two_pictures_have_equal_colours():
    rng = np.random.default_rng(0)
    regions = rng.normal(size=(2, 9, 5)).astype(np.float32)
    regions[1, 4] = regions[0, 2]
    colours = principal_components(regions).colours
    np.testing.assert_allclose(colours[1, 4], colours[0, 2], atol=1e-12)


def test_three_directions_are_explained_whole():
    rng = np.random.default_rng(0)
    regions = (rng.normal(size=(1, 16, 3)) @ rng.normal(size=(3, 8))).astype(np.float32)
    assert principal_components(regions).explained == pytest.approx(1)


def test_the_first_component_is_the_longest_direction():
    t = np.linspace(-1, 1, 16)
    regions = np.stack([10 * t, 0.1 * np.sin(9 * t), 0 * t, 0 * t], axis=-1)[None]
    red = principal_components(regions.astype(np.float32)).colours[0, :, 0]
    assert np.all(np.diff(red) >= 0)


def test_colours_do_not_depend_on_the_sign_that_the_decomposition_takes():
    regions = np.random.default_rng(1).normal(size=(1, 9, 6)).astype(np.float32)
    flipped = principal_components(regions[:, ::-1]).colours[:, ::-1]
    np.testing.assert_allclose(principal_components(regions).colours, flipped, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_any_grid_can_be_drawn(rows):
    regions = np.random.default_rng(0).normal(size=(2, rows * rows, 8)).astype(np.float32)
    assert draw_regions([seen()] * 2, regions).width == 24 * 2 + 2 * 96 + 12


def test_no_words_run_off_the_page():
    regions = np.random.default_rng(0).normal(size=(1, 9, 8)).astype(np.float32)
    page = np.asarray(draw_regions([seen(180)], regions))
    assert (page[:, -MARGIN:] == 255).all()


def test_regions_without_a_difference_are_grey():
    colours = principal_components(np.ones((1, 4, 6), np.float32)).colours
    np.testing.assert_array_equal(colours, np.full((1, 4, 3), 0.5))
