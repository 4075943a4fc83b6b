import numpy as np
import pytest
import torch
from PIL import Image

from trainer.figures.correspondence import Lines, choose_lines, count_mirrored, draw_lines


def one_hot(*indices):
    """Regions (1, L, 4), each along one axis, the later the shorter of similarity."""
    return torch.eye(4)[list(indices)][None]


def test_the_most_similar_pairs_are_drawn_last():
    source = one_hot(0, 1, 2)
    target = torch.tensor([[[1, 0, 0, 0.0], [0, 1, 0, 1], [0, 0, 1, 0.5]]])
    lines = choose_lines(source, target, top_k=2, mutual_only=True)
    assert lines.source.tolist() == [2, 0]
    assert lines.target.tolist() == [2, 0]
    np.testing.assert_allclose(lines.scores, [1 / np.sqrt(1.25), 1], atol=1e-6)


def test_pairs_that_are_not_mutual_are_left_out_if_asked():
    source, target = one_hot(0, 0, 1), one_hot(0, 1, 2)
    mutual = choose_lines(source, target, top_k=9, mutual_only=True)
    assert sorted(mutual.source.tolist()) == [0, 2]
    every = choose_lines(source, target, top_k=9, mutual_only=False)
    assert sorted(every.source.tolist()) == [0, 1, 2]


def test_a_pair_is_right_at_exactly_the_mirror_place():
    lines = Lines(np.array([0, 1, 3]), np.array([1, 1, 2]), np.ones(3, np.float32))
    assert count_mirrored(lines, 2) == 2


@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_lines_join_the_regions_they_are_of(rows):
    L = rows * rows
    pictures = (Image.new("RGB", (96, 96), "white"),) * 2
    none = draw_lines(pictures, Lines(*np.zeros((3, 0), int)), L, "0 pairs")
    lines = Lines(np.array([0]), np.array([L - 1]), np.array([0.5], np.float32))
    page = draw_lines(pictures, lines, L, "0 pairs")
    changed = np.argwhere((np.asarray(page) != np.asarray(none)).any(axis=-1))
    top, left = changed[changed[:, 0] < 24 + 34 + 96 + 8].min(axis=0)
    assert abs(top - (58 + 48 / rows)) < 12
    assert abs(left - (24 + 48 / rows)) < 8
