import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from trainer.evaluation.config import CorrespondenceConfig
from trainer.evaluation.correspondence import (
    measure,
    measure_correspondence,
    measure_views,
    mirrored_copies,
)
from trainer.evaluation.images import preprocessing
from trainer.evaluation.subject import Frozen, Subject


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


def test_view_that_sees_half_is_measured_on_that_half():
    """The second view is the right half, enlarged: regions 2 and 3 of a row fill it."""
    first = torch.eye(16)[None]
    wanted = torch.full((1, 16, 2), torch.nan)
    second = torch.zeros(1, 4, 4, 16)
    for row in range(4):
        for column in (2, 3):
            place = 4 * row + column
            wanted[0, place] = torch.tensor([2 * (column - 2) + 1.0, row + 0.5])
            second[0, row, 2 * (column - 2) + 1, place] = 1
    second[0, 0, 1], second[0, 0, 2] = 0.0, first[0, 2]  # one is found a region too far right
    found = measure_views(first, second.flatten(1, 2), wanted, 64)
    assert found.accuracy.item() == pytest.approx(7 / 8)
    assert found.distance_px.item() == pytest.approx(16 * (7 * 0.5 + 1.5) / 8)
    assert found.next_score.item() == 0


def regions_of(colour_of):
    """A network of which each region answers by its mean colour, or another function of it."""

    def run(pixels, _output):
        regions = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), 8)
        return colour_of(regions.flatten(2).transpose(1, 2))

    spec = preprocessing(64)
    return Frozen(file="f", network=None, arch="a", spec=spec, digest="d", arithmetic="x", run=run)


def ask(path, frozen, **options):
    config = CorrespondenceConfig(data=str(path), num_workers=0, use_cache=False, **options)
    return measure_correspondence(config, Subject(frozen, config, Console(stderr=True)))


@pytest.fixture
def blots(tmp_path):
    """Grey pictures in which each place has a level of its own."""
    rng = np.random.default_rng(0)
    for number in range(6):
        levels = rng.permutation(64).reshape(8, 8).astype(np.uint8) * 4
        pixels = np.array(Image.fromarray(levels).resize((256, 256), Image.Resampling.BICUBIC))
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def one_hot(regions):
    """Tell grey levels apart, sharply."""
    levels = torch.linspace(0, 255, 128)
    return (-((regions.mean(-1, keepdim=True) - levels) ** 2) / 8).exp()


@pytest.mark.parametrize(("geometry", "margin"), [("mirror", 0.1), ("free", 0.0)])
def test_network_that_sees_content_beats_one_that_knows_places(blots, geometry, margin):
    """The margin is small where colours are jittered, which this network cannot ignore."""
    sees = ask(blots, regions_of(one_hot), geometry=geometry)
    knows = ask(
        blots, regions_of(lambda r: torch.eye(64).expand(len(r), 64, 64)), geometry=geometry
    )
    assert sees["images"] == 6
    assert sees["accuracy"] > knows["accuracy"] + margin
    assert sees == ask(blots, regions_of(one_hot), geometry=geometry)


def test_free_views_of_few_regions_or_of_a_border_are_refused(blots):
    with pytest.raises(ValueError, match="need 4 x 4 regions"):
        ask(blots, regions_of(lambda regions: regions[:, :9]), geometry="free")
    with pytest.raises(ValueError, match="--fit crop or stretch"):
        ask(blots, regions_of(one_hot), geometry="free", fit="pad")
