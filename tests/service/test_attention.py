import io

import numpy as np
import pytest
from PIL import Image

from service.attention import (
    MAX_PICTURE_SIDE,
    VIRIDIS,
    attention_maps,
    picture_size,
    render_heatmap,
    render_overlay,
    to_draw_on,
)
from service.preprocess import place
from tests.service.pictures import scene
from tests.service.tiny_model import SPEC

GRID = (3, 4)


@pytest.fixture
def attention():
    weights = np.random.default_rng(0).random((2, 12, 12)).astype(np.float32)
    return weights / weights.sum(axis=-1, keepdims=True)


def read(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_pooled_maps_are_what_each_region_is_given_on_average(attention):
    maps = attention_maps(attention, GRID, "all", None)
    for head in range(2):
        for key in range(12):
            given = sum(attention[head, query, key] for query in range(12)) / 12
            assert maps[head, key // 4, key % 4] == pytest.approx(given)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, atol=1e-6)


def test_a_query_gives_its_own_row(attention):
    maps = attention_maps(attention, GRID, "all", 7)
    np.testing.assert_array_equal(maps.reshape(2, 12), attention[:, 7])


def test_all_queries_are_the_rows_of_each(attention):
    every = attention_maps(attention, GRID, "all", "all")
    assert every.shape == (2, 12, 3, 4)
    for query in range(12):
        alone = attention_maps(attention, GRID, "all", query)
        np.testing.assert_array_equal(every[:, query], alone)


@pytest.mark.parametrize("query", [None, 5])
def test_one_head_is_that_row_of_all_heads(attention, query):
    every = attention_maps(attention, GRID, "all", query)
    for head in range(2):
        one = attention_maps(attention, GRID, head, query)
        np.testing.assert_array_equal(one, every[head : head + 1])


@pytest.mark.parametrize("query", [None, 5])
def test_mean_is_the_mean_of_all_heads(attention, query):
    every = attention_maps(attention, GRID, "all", query)
    mean = attention_maps(attention, GRID, "mean", query)
    assert mean.shape == (1, 3, 4)
    np.testing.assert_allclose(mean[0], (every[0] + every[1]) / 2, atol=1e-7)


def one_hot(row: int, column: int) -> np.ndarray:
    weights = np.zeros((4, 4), np.float32)
    weights[row, column] = 1
    return weights


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("cell", [(1, 2), (2, 1)])
def test_heat_is_highest_where_the_region_lies_on_the_picture(fit, cell):
    geometry = place(96, 72, SPEC, fit)
    heat = read(render_heatmap(one_hot(*cell), geometry, 32))
    assert heat.shape == (72, 96, 4)
    centre = geometry.to_source((np.array([cell[1], cell[0]]) + 0.5) * 8)
    y, x = np.unravel_index(heat[..., 0].argmax(), (72, 96))  # red is highest at viridis' end
    assert np.abs((x + 0.5, y + 0.5) - centre).max() <= 1
    assert heat[y, x, 0] >= 210  # half a pixel from the centre the heat is 0.94


def test_what_the_crop_cuts_away_is_transparent():
    heat = read(render_heatmap(one_hot(0, 0), place(96, 72, SPEC, "crop"), 32))
    left = 96 / 48 * 8  # 48 x 36 after the resize; the square begins at (8, 2)
    assert (heat[:, : int(left), 3] == 0).all()
    assert (heat[10:60, int(left) : 80, 3] == 255).all()
    assert (heat[:4, :, 3] == 0).all()


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_wholly_seen_picture_has_no_transparent_pixel(fit):
    heat = read(render_heatmap(one_hot(0, 0), place(96, 71, SPEC, fit), 32))
    assert (heat[..., 3] == 255).all()


def test_a_flat_map_is_drawn_in_the_lowest_colour():
    heat = read(render_heatmap(np.full((4, 4), 0.25, np.float32), place(9, 9, SPEC, "stretch"), 32))
    assert (heat[..., :3] == VIRIDIS[0]).all()


def test_heat_between_two_regions_is_interpolated():
    weights = np.array([[0, 1]], np.float32)
    heat = read(render_heatmap(weights, place(64, 8, SPEC, "stretch"), 32))
    at = [np.abs(heat[4, x, :3].astype(int) - VIRIDIS[4]).max() for x in range(64)]
    assert int(np.argmin(at)) in (31, 32)  # half heat at the boundary in the middle


def test_overlay_leaves_the_picture_where_there_is_no_heat():
    picture = scene(96, 72)
    drawn = read(render_overlay(one_hot(1, 2), place(96, 72, SPEC, "stretch"), 32, picture))
    assert drawn.shape == (72, 96, 3)
    np.testing.assert_array_equal(drawn[:, :12], np.asarray(picture)[:, :12])


def test_overlay_mixes_six_parts_of_colour_with_four_of_the_picture_at_full_heat():
    picture = Image.new("RGB", (4, 4), (100, 100, 100))
    drawn = read(render_overlay(one_hot(3, 3), place(4, 4, SPEC, "stretch"), 32, picture))
    np.testing.assert_allclose(drawn[3, 3], 0.6 * VIRIDIS[-1] + 40, atol=1)


def test_overlay_is_drawn_on_a_picture_that_was_shrunk_while_decoding():
    geometry = place(96, 72, SPEC, "stretch")
    drawn = read(render_overlay(np.ones((4, 4), np.float32), geometry, 32, scene(48, 36)))
    assert drawn.shape == (72, 96, 3)


def test_what_is_kept_to_draw_on_is_small_and_the_drawing_the_same():
    picture = scene(1500, 1000)
    geometry = place(1500, 1000, SPEC, "crop")
    kept = to_draw_on(picture, geometry)
    assert kept.size == picture_size(geometry) == (1024, 683)
    drawn = render_overlay(one_hot(1, 2), geometry, 32, kept)
    assert drawn == render_overlay(one_hot(1, 2), geometry, 32, picture)


def test_what_is_small_enough_to_draw_on_is_kept_as_it_is():
    picture = scene(96, 72)
    assert to_draw_on(picture, place(96, 72, SPEC, "crop")) is picture
    assert to_draw_on(picture, place(9600, 7200, SPEC, "crop")) is picture


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((1024, 3), (1024, 3)), ((2048, 1000), (1024, 500)), ((1, 3000), (1, 1024))],
)
def test_drawings_are_no_larger_than_the_limit(size, drawn):
    assert picture_size(place(*size, SPEC, "stretch")) == drawn
    assert max(drawn) <= MAX_PICTURE_SIDE
