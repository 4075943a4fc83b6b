import numpy as np
import pytest

from service.contract import PreprocessSpec
from service.parity import PHOTOGRAPHS, least_cosines, photograph_pixels
from tests.service import oracles
from tests.service.tiny_model import SPEC


def test_photographs_ship_with_the_service():
    assert len(PHOTOGRAPHS) >= 3


@pytest.mark.parametrize("spec", [SPEC, PreprocessSpec()])
def test_photographs_come_as_the_model_sees_them(spec):
    pixels = photograph_pixels(spec)
    assert pixels.shape == (len(PHOTOGRAPHS), spec.crop, spec.crop, 3)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 30  # photographs, not blanks


def test_least_cosine_is_that_of_the_worst_vector():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 2, 3, 5)).astype(np.float32)
    worst = min(oracles.cosine(left[b, r], right[b, r]) for b in range(2) for r in range(3))
    assert least_cosines({"regions": left}, {"regions": right})["regions"] == pytest.approx(worst)


def test_equal_outputs_have_cosine_one_even_where_they_are_zero():
    values = np.array([[0, 0, 0], [1, 2, 3]], np.float32)
    assert least_cosines({"embedding": values}, {"embedding": values}) == {
        "embedding": pytest.approx(1.0)
    }


def test_vectors_that_collapsed_to_zero_are_no_pass():
    zeros, ones = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    assert least_cosines({"embedding": zeros}, {"embedding": ones})["embedding"] == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_no_numbers_are_no_pass(bad):
    values, ones = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    values[1, 0] = bad
    assert least_cosines({"embedding": values}, {"embedding": ones})["embedding"] == -1.0
