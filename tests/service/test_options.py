import tracemalloc

import pytest

from service.errors import InvalidRequest
from service.inputs import read_options
from service.schemas import AttentionOptions, CorrespondOptions, EmbedOptions


def refused(model, fields) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read_options(model, fields)
    return caught.value


def test_options_are_the_same_from_text_and_from_json():
    from_text = read_options(
        CorrespondOptions,
        {"points": "[[1, 2.5], [3, 4]]", "top_k": "5", "min_score": "0.5", "mutual_only": "true"},
    )
    from_json = read_options(
        CorrespondOptions,
        {"points": [[1, 2.5], [3, 4]], "top_k": 5, "min_score": 0.5, "mutual_only": True},
    )
    assert from_text == from_json
    assert from_json.points == [(1.0, 2.5), (3.0, 4.0)]


@pytest.mark.parametrize(("given", "head"), [("2", 2), (2, 2), ("mean", "mean"), ("all", "all")])
def test_heads_are_numbers_or_words(given, head):
    assert read_options(AttentionOptions, {"head": given}).head == head


@pytest.mark.parametrize(
    ("model", "fields", "field"),
    [
        (EmbedOptions, {"fit": "zoom"}, "fit"),
        (EmbedOptions, {"fit": 3}, "fit"),
        (EmbedOptions, {"dimensions": 0}, "dimensions"),
        (EmbedOptions, {"dimensions": 1.5}, "dimensions"),
        (EmbedOptions, {"dimensions": "many"}, "dimensions"),
        (EmbedOptions, {"normalize": "perhaps"}, "normalize"),
        (EmbedOptions, {"encoding_format": ["base64"]}, "encoding_format"),
        (EmbedOptions, {"output": "regions"}, "output"),
        (CorrespondOptions, {"points": 3}, "points"),
        (CorrespondOptions, {"points": [[1, 2, 3]]}, "points.0"),
        (CorrespondOptions, {"points": [[1, 2], [1, None]]}, "points.1.1"),
        (CorrespondOptions, {"points": "[[NaN, 1]]"}, "points"),
        (CorrespondOptions, {"points": [[float("inf"), 1]]}, "points.0.0"),
        (CorrespondOptions, {"min_score": "nan"}, "min_score"),
        (CorrespondOptions, {"min_score": 1.01}, "min_score"),
        (CorrespondOptions, {"top_k": 0}, "top_k"),
        (AttentionOptions, {"head": "first"}, "head"),
        (AttentionOptions, {"query": "1"}, "query"),
        (AttentionOptions, {"query": [1]}, "query.1"),
        (AttentionOptions, {"render": "3d"}, "render"),
    ],
)
def test_an_option_of_a_wrong_type_is_refused_by_name(model, fields, field):
    error = refused(model, fields)
    assert (error.status, error.code, error.field) == (422, "invalid_request", field)
    assert len(error.message) <= 200


def test_an_unknown_option_is_refused_with_the_known_ones():
    error = refused(EmbedOptions, {"dimension": 3})
    assert error.field == "dimension"
    assert error.message == (
        "unknown option; known are dimensions, encoding_format, fit, normalize, on_error, output"
    )


def test_a_pair_of_pictures_cannot_be_answered_in_part():
    assert refused(CorrespondOptions, {"on_error": "null"}).field == "on_error"


@pytest.mark.parametrize("name", ["<script>", "\ud800", "a b", "ä", "x" * 100 + "!", ""])
def test_names_that_are_no_names_are_not_echoed(name):
    assert refused(EmbedOptions, {name: 1}).field == "?"


def test_a_long_name_is_cut():
    assert refused(EmbedOptions, {"x" * 100_000: 1}).field == "x" * 64


def test_too_many_options_are_refused_unlooked_at():
    error = refused(EmbedOptions, {f"x{n}": n for n in range(100_000)})
    assert error.message == "100000 fields; at most 32 are accepted"


def test_a_million_bad_points_are_refused_at_the_first():
    points = [None] * 1_000_000
    tracemalloc.start()
    error = refused(CorrespondOptions, {"points": points})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.field == "points.0"
    assert peak < 5_000_000
