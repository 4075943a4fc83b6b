import numpy as np
import pytest

from service.correspond import (
    RegionMap,
    cell_indices,
    correspond,
    interpolate,
    peak_offsets,
    select,
)
from tests.service import oracles


def region_map(seed: int, grid=(3, 4), visible=None) -> RegionMap:
    length = grid[0] * grid[1]
    features = np.random.default_rng(seed).normal(size=(length, 6)).astype(np.float32)
    return RegionMap(features, grid, np.ones(length, bool) if visible is None else visible)


def match_all(source, target, *, points=None, subcell=False, is_same=False):
    return correspond(source, target, points=points, subcell=subcell, is_same=is_same)


def centre(index, grid):
    return [index % grid[1] + 0.5, index // grid[1] + 0.5]


BORDERED = np.array([False] * 4 + [True] * 4 + [True, True, True, False])


@pytest.mark.parametrize("is_same", [False, True])
@pytest.mark.parametrize("visible", [None, BORDERED])
@pytest.mark.parametrize("seed", range(3))
def test_matches_equal_the_written_out_search(seed, visible, is_same):
    source = region_map(seed)
    target = source if is_same else region_map(seed + 50, visible=visible)
    matches = match_all(source, target, is_same=is_same)
    expected = oracles.correspond(
        source.features, target.features, source.visible, target.visible, is_same
    )
    for row, (query, best, score, mutual) in enumerate(expected):
        assert matches.query[row] == query
        assert matches.source[row].tolist() == centre(query, source.grid)
        assert matches.target[row].tolist() == centre(best, target.grid)
        assert matches.score[row] == pytest.approx(score, abs=1e-5)
        assert matches.mutual[row] == mutual
    assert len(matches.query) == len(expected)


def test_a_picture_corresponds_with_its_copy_by_identity():
    source = region_map(0)
    matches = match_all(source, region_map(0))
    np.testing.assert_array_equal(matches.source, matches.target)
    np.testing.assert_allclose(matches.score, 1.0, atol=1e-6)
    assert matches.mutual.all()


def test_a_mirrored_map_gives_mirrored_matches():
    source = region_map(1)
    mirrored = source.features.reshape(3, 4, -1)[:, ::-1].reshape(12, -1)
    matches = match_all(source, source._replace(features=mirrored))
    np.testing.assert_array_equal(matches.target[:, 0], 4 - matches.source[:, 0])
    np.testing.assert_array_equal(matches.target[:, 1], matches.source[:, 1])


def test_maps_of_different_grids_match():
    source, target = region_map(2), region_map(3, grid=(2, 5))
    matches = match_all(source, target)
    assert (matches.target <= (5, 2)).all()
    assert len(matches.query) == 12


def test_a_picture_compared_with_itself_never_matches_a_region_with_itself():
    source = region_map(4)
    matches = match_all(source, source, is_same=True)
    assert (matches.source != matches.target).any(axis=1).all()
    assert (matches.score < 0.9999).all()


def test_twins_within_one_picture_find_each_other():
    source = region_map(5)
    source.features[7] = 3 * source.features[2]
    matches = match_all(source, source, is_same=True)
    assert matches.target[2].tolist() == centre(7, (3, 4))
    assert matches.target[7].tolist() == centre(2, (3, 4))
    assert matches.mutual[2]
    assert matches.mutual[7]


def test_the_border_neither_asks_nor_is_matched():
    source, target = region_map(6, visible=BORDERED), region_map(6)
    hidden = match_all(source, source._replace(features=region_map(6).features))
    assert set(hidden.query) == set(np.flatnonzero(BORDERED))
    matches = match_all(target, source)
    cells = {int(y) * 4 + int(x) for x, y in matches.target}
    assert cells <= set(np.flatnonzero(BORDERED))


def test_a_region_of_zeros_scores_zero():
    source = region_map(7)
    source.features[0] = 0
    assert match_all(source, region_map(8)).score[0] == 0.0


def test_asked_points_match_as_the_regions_they_lie_in():
    source, target = region_map(9), region_map(10)
    every = match_all(source, target)
    points = np.array([[0.01, 0.99], [3.99, 2.5], [2.0, 1.0]])
    matches = match_all(source, target, points=points)
    regions = [0, 11, 6]
    assert matches.query.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(matches.source, points)
    np.testing.assert_array_equal(matches.target, every.target[regions])
    np.testing.assert_array_equal(matches.score, every.score[regions])
    np.testing.assert_array_equal(matches.mutual, every.mutual[regions])


def test_asked_points_between_regions_have_interpolated_features():
    source, target = region_map(11), region_map(12)
    points = np.array([[1.3, 0.9], [0.1, 2.9], [3.5, 0.5]])
    matches = match_all(source, target, points=points, subcell=True)
    for row, (x, y) in enumerate(points):
        feature = oracles.bilinear(source.features, 3, 4, x, y)
        _, score = oracles.best_match(feature, target.features, [True] * 12)
        assert matches.score[row] == pytest.approx(score, abs=1e-5)


def test_interpolation_equals_the_written_out_one():
    source = region_map(13)
    points = np.random.default_rng(0).uniform((0, 0), (4, 3), (30, 2))
    expected = [oracles.bilinear(source.features, 3, 4, x, y) for x, y in points]
    np.testing.assert_allclose(interpolate(source, points), expected, atol=1e-5)


def test_interpolation_at_a_centre_gives_that_region():
    source = region_map(14)
    np.testing.assert_array_equal(
        interpolate(source, np.array([[2.5, 1.5]]))[0], source.features[6]
    )


@pytest.mark.parametrize(
    ("before", "top", "after", "offset"),
    [
        (0.5, 0.9, 0.5, 0.0),  # even: the top is at the centre
        (0.5, 0.9, 0.7, 1 / 6),  # 0.5 (0.5 - 0.7) / (0.5 - 1.8 + 0.7)
        (0.7, 0.9, 0.5, -1 / 6),
        (0.1, 0.9, 0.9, 0.5),  # half way to an equal neighbour
        (0.9, 0.9, 0.9, 0.0),  # flat: there is no top
    ],
)
def test_subcell_offset_is_the_top_of_the_parabola(before, top, after, offset):
    cosines = np.array([[before, top, after]], np.float32)
    along_x = peak_offsets(cosines, np.array([1]), (1, 3))
    np.testing.assert_allclose(along_x, [[offset, 0]], atol=1e-6)
    along_y = peak_offsets(cosines, np.array([1]), (3, 1))
    np.testing.assert_allclose(along_y, [[0, offset]], atol=1e-6)


@pytest.mark.parametrize("best", [0, 2])
def test_subcell_offset_at_the_edge_of_the_map_is_zero(best):
    cosines = np.array([[0.9, 0.5, 0.9]], np.float32)
    assert peak_offsets(cosines, np.array([best]), (1, 3)).tolist() == [[0, 0]]


@pytest.mark.parametrize("row", [[-np.inf, 0.9, 0.5], [0.5, 0.9, -np.inf]])
def test_subcell_offset_next_to_the_border_is_zero(row):
    assert peak_offsets(np.array([row], np.float32), np.array([1]), (1, 3)).tolist() == [[0, 0]]


def test_subcell_positions_stay_within_half_a_cell():
    source, target = region_map(15), region_map(16)
    plain, fine = match_all(source, target), match_all(source, target, subcell=True)
    assert np.abs(fine.target - plain.target).max() <= 0.5
    assert (fine.target != plain.target).any()
    np.testing.assert_array_equal(fine.source, plain.source)


@pytest.mark.parametrize("subcell", [False, True])
@pytest.mark.parametrize("points", [None, np.array([[0.5, 0.5], [2.2, 1.1]])])
def test_where_nothing_may_be_matched_there_is_no_match(points, subcell):
    target = region_map(17, visible=np.zeros(12, bool))
    matches = match_all(region_map(18), target, points=points, subcell=subcell)
    assert len(matches.query) == len(matches.target) == 0


def test_the_only_visible_region_of_a_picture_does_not_match_itself():
    only = region_map(19, visible=np.arange(12) == 5)
    assert len(match_all(only, only, is_same=True).query) == 0


def test_cell_indices_by_hand():
    points = np.array([[0.0, 0.0], [3.9, 0.2], [0.5, 2.0]])
    assert cell_indices(points, (3, 4)).tolist() == [0, 3, 8]


def selected(matches, mutual_only=False, min_score=None, top_k=None):
    return select(matches, mutual_only=mutual_only, min_score=min_score, top_k=top_k)


@pytest.fixture
def matches():
    return match_all(region_map(20), region_map(21))


def test_select_keeps_everything_unless_asked(matches):
    np.testing.assert_array_equal(selected(matches).query, matches.query)


def test_mutual_only_keeps_exactly_the_mutual(matches):
    kept = selected(matches, mutual_only=True)
    assert 0 < len(kept.query) < len(matches.query)
    assert kept.query.tolist() == [
        q for q, mutual in zip(matches.query, matches.mutual, strict=True) if mutual
    ]


def test_min_score_is_inclusive(matches):
    middle = float(sorted(matches.score)[5])
    kept = selected(matches, min_score=middle)
    assert len(kept.query) == 7
    assert kept.score.min() == np.float32(middle)


def test_top_k_takes_the_highest_best_first(matches):
    kept = selected(matches, top_k=4)
    assert kept.score.tolist() == sorted(matches.score.tolist(), reverse=True)[:4]
    for row in range(4):
        at = matches.query.tolist().index(kept.query[row])
        assert kept.target[row].tolist() == matches.target[at].tolist()


def test_top_k_beyond_the_matches_takes_all(matches):
    assert len(selected(matches, top_k=100).query) == 12


def test_top_k_counts_only_what_the_other_choices_leave(matches):
    kept = selected(matches, mutual_only=True, top_k=2)
    assert kept.mutual.all()
    assert len(kept.query) == 2


def test_top_k_takes_the_first_of_equals():
    kind = np.random.default_rng(0).integers(0, 3, 400)
    source = RegionMap(np.eye(3, dtype=np.float32)[kind], (20, 20), np.ones(400, bool))
    target = RegionMap(np.array([[3, 2, 1]], np.float32), (1, 1), np.ones(1, bool))
    kept = selected(match_all(source, target), top_k=300)
    assert kept.query.tolist() == sorted(range(400), key=lambda index: kind[index])[:300]
