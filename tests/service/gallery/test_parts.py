import numpy as np
import pytest

from service.correspond import RegionMap
from service.errors import InvalidRequest, PointOutOfBounds
from service.gallery import parts
from service.preprocess import place
from service.regions import is_visible, region_boxes
from tests.service.tiny_model import GRID, INFO, SIDE, SPEC, C, L


def shown(features, width=96, height=72, fit="stretch"):
    geometry = place(width, height, SPEC, fit)
    return parts.Shown(RegionMap(features, GRID, is_visible(geometry, GRID, SIDE)), geometry)


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(L, C)).astype(np.float32)


def test_a_box_takes_the_regions_whose_centres_it_holds(features):
    assert parts.cells_in(INFO, shown(features), (0, 0, 48, 36)).tolist() == [0, 1, 4, 5]
    assert parts.cells_in(INFO, shown(features), (24, 18, 72, 54)).tolist() == [5, 6, 9, 10]


def test_a_small_box_takes_the_region_it_lies_in(features):
    assert parts.cells_in(INFO, shown(features), (49, 37, 50, 38)).tolist() == [10]


@pytest.mark.parametrize("box", [(10, 10, 10, 20), (20, 10, 10, 20), (10, 20, 20, 10)])
def test_a_box_without_area_is_refused(features, box):
    with pytest.raises(InvalidRequest, match="a box is left, top, right, bottom"):
        parts.cells_in(INFO, shown(features), box)


def test_a_box_that_the_model_does_not_see_is_refused(features):
    with pytest.raises(PointOutOfBounds):
        parts.cells_in(INFO, shown(features, 300, 72, "crop"), (0, 0, 20, 20))


def test_visible_regions_come_back_to_their_places(features):
    whole = shown(features, 96, 40, "pad")
    kept = parts.take_visible(INFO, features, whole.geometry)
    assert 0 < len(kept) < L
    again = parts.show(INFO, kept, whole.geometry)
    visible = whole.regions.visible
    np.testing.assert_array_equal(again.regions.features[visible], features[visible])
    assert not again.regions.features[~visible].any()


def test_a_part_is_found_where_it_was_moved_to(features):
    """Regions 0, 1, 4, 5 stand at 10, 11, 14, 15 of the other picture, which is new elsewhere."""
    other = np.random.default_rng(1).normal(size=(L, C)).astype(np.float32)
    cells, places = np.array([0, 1, 4, 5]), np.array([10, 11, 14, 15])
    other[places] = features[cells]
    candidate = shown(other, 400, 400)
    match = parts.match_part(INFO, shown(features), cells, candidate)
    assert match.num_mutual == 4
    assert match.score == pytest.approx(1.0, abs=1e-5)
    assert match.similarity == pytest.approx(1.0, abs=1e-5)
    boxes = region_boxes(candidate.geometry, GRID, SIDE)[places]
    assert match.box == (*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0))


def test_the_score_is_the_mutual_matches_share_written_out(features):
    other = np.random.default_rng(2).normal(size=(L, C)).astype(np.float32)
    cells = np.array([2, 3, 7])
    unit, target = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (features, other))
    total, best, mutual = 0.0, -1.0, 0
    for cell in cells:
        cosines = [float(unit[cell] @ target[j]) for j in range(L)]
        j = int(np.argmax(cosines))
        best = max(best, cosines[j])
        back = int(np.argmax([float(target[j] @ unit[i]) for i in range(L)]))
        if back == cell:
            total, mutual = total + cosines[j], mutual + 1
    match = parts.match_part(INFO, shown(features), cells, shown(other))
    assert match.score == pytest.approx(total / 3, abs=1e-5)
    assert match.similarity == pytest.approx(best, abs=1e-5)
    assert match.num_mutual == mutual


def test_without_a_mutual_match_the_most_similar_region_is_shown(features):
    other = np.zeros((L, C), np.float32)
    other[6] = features[9]  # whose match in the other leads back to 9, not to what is asked
    candidate = shown(other)
    asked = np.copy(features)
    asked[2] = features[9] + 0.5 * features[2]
    match = parts.match_part(INFO, shown(asked), np.array([2]), candidate)
    assert (match.num_mutual, match.score) == (0, 0.0)
    assert match.box == tuple(region_boxes(candidate.geometry, GRID, SIDE)[6])
