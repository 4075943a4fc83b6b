import numpy as np
import pytest

from service.contract import PreprocessSpec
from service.errors import PointOutOfBounds
from service.preprocess import Geometry, place
from service.regions import (
    cells_to_source,
    is_visible,
    region_boxes,
    region_centers,
    source_to_cells,
)
from tests.service.tiny_model import SPEC

WHOLE = Geometry(80, 40, 0.0, 0.0, 2.5, 1.25)
"""A picture of 80 x 40 px squeezed to 32 x 32."""


def points(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, np.float64)


def test_boxes_by_hand_row_by_row():
    boxes = region_boxes(WHOLE, (2, 4), 32)
    assert boxes.tolist() == [
        [0, 0, 20, 20],
        [20, 0, 40, 20],
        [40, 0, 60, 20],
        [60, 0, 80, 20],
        [0, 20, 20, 40],
        [20, 20, 40, 40],
        [40, 20, 60, 40],
        [60, 20, 80, 40],
    ]


def test_boxes_of_a_cropped_picture_tile_what_the_model_sees():
    # 100 x 50 px: the square begins at (20, 2) of 72 x 36, and a region is 8 of its pixels.
    geometry = place(100, 50, SPEC, "crop")
    scale = 100 / 72
    for index, box in enumerate(region_boxes(geometry, (4, 4), 32)):
        row, column = index // 4, index % 4
        left, top = (20 + 8 * column) * scale, (2 + 8 * row) * scale
        np.testing.assert_allclose(box, (left, top, left + 8 * scale, top + 8 * scale))


def test_boxes_of_a_padded_picture_are_cut_at_its_edge():
    boxes = region_boxes(place(64, 24, SPEC, "pad"), (4, 4), 32)  # rows 10 to 22 of the square
    heights = boxes[::4, 3] - boxes[::4, 1]
    assert heights.tolist() == [0, 12, 12, 0]


def test_centres_lie_in_the_middle_of_boxes():
    geometry = place(100, 50, SPEC, "crop")
    boxes = region_boxes(geometry, (4, 4), 32)
    np.testing.assert_allclose(
        region_centers(geometry, (4, 4), 32), (boxes[:, :2] + boxes[:, 2:]) / 2
    )


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("grid", [(4, 4), (7, 5)])
def test_centres_lead_back_to_the_middle_of_cells(fit, grid):
    geometry = place(100, 70, SPEC, fit)
    visible = is_visible(geometry, grid, 32)
    cells = source_to_cells(region_centers(geometry, grid, 32)[visible], geometry, grid, 32)
    expected = [(c + 0.5, r + 0.5) for r in range(grid[0]) for c in range(grid[1])]
    np.testing.assert_allclose(cells, np.array(expected)[visible])


def test_cells_by_hand():
    assert cells_to_source(points((1, 1)), WHOLE, (4, 4), 32).tolist() == [[20, 10]]
    assert source_to_cells(points((20, 10)), WHOLE, (4, 4), 32).tolist() == [[1, 1]]


def test_every_corner_of_a_wholly_seen_picture_lies_inside():
    for spec in (SPEC, PreprocessSpec()):
        for width in range(1, 700, 5):
            for height in (width, width + 1, 480):
                for fit in ("stretch", "pad"):
                    corners = points((0, 0), (width, 0), (0, height), (width, height))
                    geometry = place(width, height, spec, fit)
                    cells = source_to_cells(corners, geometry, (7, 7), spec.crop)
                    assert (cells >= 0).all()
                    assert (cells < 7).all()  # so that its floor is a cell


@pytest.mark.parametrize("size", [(451, 300), (601, 403), (97, 89), (40, 333)])
def test_every_corner_of_a_box_lies_inside_as_an_answer_writes_it(size):
    geometry = place(*size, SPEC, "crop")
    boxes = region_boxes(geometry, (4, 4), 32).round(3)
    first, last = boxes[[0, -1]]
    cells = source_to_cells(points(first[:2], last[2:]), geometry, (4, 4), 32)
    np.testing.assert_allclose(cells, [(0, 0), (4, 4)], atol=1e-3)
    assert (cells >= 0).all()
    assert (cells < 4).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("point", [(-0.1, 5), (5, -0.1), (100.1, 5), (5, 50.1), (1e308, 0)])
def test_a_point_off_the_picture_is_out_of_bounds(fit, point):
    geometry = place(100, 50, SPEC, fit)
    with pytest.raises(PointOutOfBounds, match=r"outside the picture of 100x50$") as caught:
        source_to_cells(points((50, 25), point), geometry, (4, 4), 32)
    assert caught.value.field == "points[1]"
    assert caught.value.code == "region_out_of_bounds"


def test_a_point_that_the_crop_cuts_away_is_out_of_bounds():
    geometry = place(100, 50, SPEC, "crop")
    with pytest.raises(PointOutOfBounds, match="fit=pad or fit=stretch show"):
        source_to_cells(points((20, 25)), geometry, (4, 4), 32)


def test_the_padded_border_is_not_visible():
    visible = is_visible(place(64, 24, SPEC, "pad"), (4, 4), 32)
    assert visible.reshape(4, 4).tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]


def test_of_a_narrow_panorama_the_rows_that_hold_it_are_visible():
    visible = is_visible(place(640, 40, SPEC, "pad"), (4, 4), 32)
    assert visible.reshape(4, 4).all(axis=1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_without_a_border_all_is_visible(fit):
    assert is_visible(place(301, 77, SPEC, fit), (4, 4), 32).all()
