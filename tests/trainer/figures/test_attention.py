import math

import numpy as np
import pytest
from PIL import Image

from trainer.figures.attention import (
    choose_heads,
    draw_attention,
    entropies,
    fade,
    mass_mask,
    overlay,
)
from trainer.figures.page import GAP, MARGIN
from trainer.figures.seen import Seen


def seen(side=96):
    return Seen(Image.new("RGB", (side, side), (200, 60, 40)), None, None)


def test_entropy_is_that_of_the_shares():
    weights = np.array([[0.5, 0.5, 0, 0], [0.25] * 4, [0, 0, 0.1, 0]], np.float32)
    np.testing.assert_allclose(entropies(weights), [math.log(2), math.log(4), 0], atol=1e-6)


def test_a_mask_holds_the_fewest_regions_that_are_enough():
    weights = np.array([0.1, 0.3, 0.05, 0.35, 0.2], np.float32)
    np.testing.assert_array_equal(mass_mask(weights), [False, True, False, True, False])
    np.testing.assert_array_equal(mass_mask(weights, 0.66), [False, True, False, True, True])


def test_exactly_enough_is_enough():
    assert mass_mask(np.full(5, 0.2, np.float32)).sum() == 3


def test_a_mask_goes_by_what_is_left_of_rows_that_lost_something():
    weights = np.array([0.03, 0.01, 0.01], np.float32)
    np.testing.assert_array_equal(mass_mask(weights), [True, False, False])


def test_heads_are_chosen_evenly_from_the_most_focused_on():
    entropy = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    assert choose_heads(entropy, 9).tolist() == [1, 2, 0, 4, 3]
    assert choose_heads(entropy, 3).tolist() == [1, 0, 3]
    assert choose_heads(entropy, 1).tolist() == [1]


def test_only_the_masked_regions_keep_their_colour():
    faded = np.asarray(fade(seen().shown, np.array([True, False, False, False])))
    assert faded[10, 10].tolist() == [200, 60, 40]
    assert np.ptp(faded[10, 90].astype(int)) == 0
    assert faded[90, 90].min() > 190


def test_the_hottest_region_is_the_brightest():
    shown = np.asarray(overlay(Image.new("RGB", (64, 64)), np.array([1, 0, 0, 0], np.float32)))
    brightness = shown.astype(int).sum(axis=-1)
    assert brightness[8, 8] == brightness.max()
    assert brightness[56, 56] < brightness[8, 8] / 5


@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_a_page_has_a_block_for_each_picture(rows):
    weights = np.random.default_rng(0).dirichlet(np.ones(rows * rows), 4).astype(np.float32)
    one = draw_attention([seen()], [weights], [(0.5, 0.5)], 3)
    two = draw_attention([seen()] * 2, [weights] * 2, [(0.5, 0.5), None], 3)
    assert one.width == two.width == 2 * MARGIN + 4 * 96 + 3 * GAP
    assert two.height - one.height == 2 * 96 + 20 + 3 * GAP


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_no_words_run_off_the_page(heads):
    weights = np.full((4, 9), 1 / 9, np.float32)
    page = np.asarray(draw_attention([seen()], [weights], [(0.5, 0.5)], heads))
    assert (page[:, -MARGIN:] == 255).all()


def test_a_narrow_page_has_room_for_more_lines():
    weights = np.full((4, 9), 1 / 9, np.float32)
    narrow, wide = (draw_attention([seen()], [weights], [None], heads) for heads in (1, 4))
    assert narrow.height > wide.height  # the same words in fewer pixels
