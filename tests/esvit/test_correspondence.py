import pytest
import torch

from esvit.correspondence import cosines, match, mutual, nearest
from esvit.loss import match_regions
from tests import oracles_loss


def test_matches_equal_the_written_out_search():
    torch.manual_seed(0)
    source, target = torch.randn(2, 7, 5), torch.randn(2, 4, 5)
    matches = match(source, target)
    for image in range(2):
        for region in range(7):
            best = oracles_loss.best_match(source[image, region], target[image])
            back = oracles_loss.best_match(target[image, best], source[image])
            assert matches.indices[image, region] == best
            assert matches.is_mutual[image, region] == (back == region)
            expected = torch.cosine_similarity(source[image, region], target[image, best], dim=0)
            torch.testing.assert_close(matches.scores[image, region], expected)


def test_permuted_map_is_matched_back():
    torch.manual_seed(0)
    source = torch.randn(1, 6, 8)
    order = torch.randperm(6)
    matches = match(source, 3 * source[:, order])
    assert torch.equal(order[matches.indices[0]], torch.arange(6))
    assert matches.is_mutual.all()
    torch.testing.assert_close(matches.scores, torch.ones(1, 6))


def test_mutual_by_hand():
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]]])
    assert nearest(scores).tolist() == [[0, 0, 1]]
    assert mutual(scores).tolist() == [[True, False, True]]


def test_agrees_with_the_training_losss_matches():
    torch.manual_seed(0)
    source, target = torch.randn(2, 9, 6), torch.randn(2, 9, 6)
    assert torch.equal(match(source, target).indices, match_regions(source, target))


def test_region_without_length_is_like_nothing():
    scores = cosines(torch.zeros(1, 1, 3), torch.ones(1, 2, 3))
    assert scores.tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize("shape", [(1, 2, 4), (2, 2, 3), (2, 3)])
def test_maps_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(B, S, C\)"):
        cosines(torch.zeros(1, 2, 3), torch.zeros(shape))
