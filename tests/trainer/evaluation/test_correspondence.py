import numpy as np
import pytest
import torch

from trainer.evaluation.correspondence import measure, mirrored_copies


def written_out(original, mirrored, image_px):
    """The measure with loops: accuracy, distance and the next score of one image."""
    side = round(len(original) ** 0.5)
    pairs = []
    for place, feature in enumerate(original):
        cosines = [
            float(feature @ other / (np.linalg.norm(feature) * np.linalg.norm(other)))
            for other in mirrored
        ]
        pairs.append((max(cosines), place, int(np.argmax(cosines))))
    pairs.sort(reverse=True)
    right, distances = 0, []
    for _, place, found in pairs[:10]:
        wanted = (image_px - (place % side + 0.5) * image_px / side, place // side + 0.5)
        x, y = (found % side + 0.5) * image_px / side, found // side + 0.5
        right += (x, y) == wanted
        distances.append(np.hypot(x - wanted[0], (y - wanted[1]) * image_px / side))
    return right / 10, float(np.mean(distances)), pairs[10][0]


def test_measure_equals_the_written_out():
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(3, 49, 16, generator=generator)
    mirrored = original.view(3, 7, 7, 16).flip(2).flatten(1, 2)
    mirrored = mirrored + 1.5 * torch.randn(3, 49, 16, generator=generator)
    found = measure(original, mirrored, 224)
    expected = [
        written_out(a, b, 224) for a, b in zip(original.numpy(), mirrored.numpy(), strict=True)
    ]
    assert 0 < found.accuracy.mean() < 1
    np.testing.assert_allclose(torch.stack(found).T, expected, rtol=1e-5)


def test_perfect_features_are_always_right():
    original = torch.eye(16)[None]
    mirrored = original.view(1, 4, 4, 16).flip(2).flatten(1, 2)
    found = measure(original, mirrored, 128)
    assert found.accuracy.item() == 1
    assert found.distance_px.item() == 0


def test_features_without_place_are_wrong_but_for_the_middle():
    """All regions find the first one: right only where that is the mirror place."""
    found = measure(torch.ones(1, 4, 3), torch.ones(1, 4, 3), 64)
    assert found.accuracy.item() == 0.25
    assert found.distance_px.item() == pytest.approx((0 + 32 + 32 + 32 * 2**0.5) / 4)
    assert found.next_score.item() == 0


def test_grid_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="6 regions are no square grid"):
        measure(torch.ones(1, 6, 3), torch.ones(1, 6, 3), 64)


def test_copies_are_mirrored_grey_and_the_same_every_time():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)
    copies = mirrored_copies(pixels, range(8))
    assert torch.equal(copies[:, 0], copies[:, 1])
    assert torch.equal(copies[:, 0], copies[:, 2])
    assert torch.equal(copies[4:], mirrored_copies(pixels[4:], range(4, 8)))
    grey = pixels.flip(3).float().mean(1)
    for copy, image in zip(copies[:, 0].float(), grey, strict=True):
        assert torch.corrcoef(torch.stack([copy.flatten(), image.flatten()]))[0, 1] > 0.7
    plain = [
        torch.equal(a, b)
        for a, b in zip(copies, mirrored_copies(pixels, range(8, 16)), strict=True)
    ]
    assert not all(plain)
