from itertools import pairwise

import pytest

from trainer.figures.page import OVERSAMPLING, _font, wrap

WORDS = "each line holds as many of the words as it has room for, in their order"


@pytest.mark.parametrize("width", [90, 150, 400])
def test_lines_are_as_full_as_they_can_be(width):
    lines = wrap(WORDS, width)
    lengths = [_font(13).getlength(line) / OVERSAMPLING for line in lines]
    assert " ".join(lines) == WORDS
    assert max(lengths) <= width
    for line, following in pairwise(lines):
        longer = f"{line} {following.split()[0]}"
        assert _font(13).getlength(longer) / OVERSAMPLING > width


def test_a_word_that_is_too_long_has_a_line_of_its_own():
    assert wrap("a correspondence b", 20) == ["a", "correspondence", "b"]
