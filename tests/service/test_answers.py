"""What each endpoint answers, against the tiny model computed by hand."""

import base64

import numpy as np
import pytest
from PIL import Image

from service.parity import PHOTOGRAPHS
from tests.service import oracles
from tests.service.calls import post_form, post_json, post_raw
from tests.service.known import (
    OTHER,
    SQUARE,
    A,
    B,
    expected,
    floats,
    good,
    npy,
    read_png,
    unit,
)
from tests.service.pictures import png, scene
from tests.service.tiny_model import HEADS, C, L

# POST /embed


def test_embed_gives_the_models_vector_normalized(client):
    content = good(post_raw(client, "/embed", A))
    np.testing.assert_allclose(
        content["embeddings"], [unit(expected(SQUARE)["embedding"])], atol=1e-5
    )
    assert content["errors"] == []
    assert content["dim"] == C


def test_embed_gives_the_models_vector_as_it_is_if_asked(client):
    content = good(post_raw(client, "/embed", A, normalize=False))
    np.testing.assert_allclose(content["embeddings"], [expected(SQUARE)["embedding"]], atol=1e-5)


def test_embed_gives_the_last_blocks(client):
    content = good(post_raw(client, "/embed", A, output="last_blocks", normalize=False))
    assert content["dim"] == 24
    np.testing.assert_allclose(content["embeddings"], [expected(SQUARE)["last_blocks"]], atol=1e-5)


def test_fewer_dimensions_are_the_first_ones_with_length_one(client):
    content = good(post_raw(client, "/embed", A, dimensions=5))
    assert content["dim"] == 5
    wanted = unit(expected(SQUARE)["embedding"][:5])
    np.testing.assert_allclose(content["embeddings"], [wanted], atol=1e-5)
    content = good(post_raw(client, "/embed", A, dimensions=5, normalize=False))
    np.testing.assert_allclose(
        content["embeddings"], [expected(SQUARE)["embedding"][:5]], atol=1e-5
    )


def test_as_many_dimensions_as_there_are_pass_and_one_more_is_refused(client):
    assert good(post_raw(client, "/embed", A, dimensions=C))["dim"] == C
    error = post_raw(client, "/embed", A, dimensions=C + 1).json()["error"]
    assert (error["field"], error["limit"]) == ("dimensions", C)
    assert good(post_raw(client, "/embed", A, dimensions=24, output="last_blocks"))["dim"] == 24


def test_embeddings_are_the_same_in_every_encoding(client):
    vectors = np.array(good(post_form(client, "/embed", [A, B]))["embeddings"], np.float32)
    encoded = good(post_form(client, "/embed", [A, B], encoding_format="base64"))["embeddings"]
    np.testing.assert_array_equal([floats(text) for text in encoded], vectors)
    halves = good(post_form(client, "/embed", [A, B], encoding_format="base64_f16"))["embeddings"]
    np.testing.assert_array_equal(
        [floats(text, "<f2") for text in halves], vectors.astype(np.float16)
    )
    file = npy(post_form(client, "/embed", [A, B], accept="application/x-npy"))
    np.testing.assert_array_equal(file, vectors)


# POST /regions


def test_regions_gives_the_models_map_and_boxes(client):
    content = good(post_raw(client, "/regions", A, normalize=False))
    (image,) = content["images"]
    assert (content["grid"], image["index"]) == ([4, 4], 0)
    assert (image["width"], image["height"]) == (36, 36)
    np.testing.assert_allclose(image["regions"], expected(SQUARE)["regions"], atol=1e-5)
    boxes = [[2 + 8 * c, 2 + 8 * r, 10 + 8 * c, 10 + 8 * r] for r in range(4) for c in range(4)]
    assert image["boxes"] == boxes


def test_regions_are_normalized_unless_asked_otherwise(client):
    (image,) = good(post_raw(client, "/regions", A))["images"]
    np.testing.assert_allclose(image["regions"], unit(expected(SQUARE)["regions"]), atol=1e-5)


def test_regions_are_the_same_in_every_encoding(client):
    values = good(post_raw(client, "/regions", A))["images"][0]["regions"]
    values = np.array(values, np.float32)
    text = good(post_raw(client, "/regions", A, encoding_format="base64"))["images"][0]["regions"]
    np.testing.assert_array_equal(floats(text).reshape(L, C), values)
    file = npy(post_raw(client, "/regions", A, accept="application/x-npy"))
    np.testing.assert_array_equal(file, values[None])


def test_a_mirrored_picture_has_the_mirrored_map(client):
    mirrored = png(SQUARE.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    maps = [
        np.array(good(post_raw(client, "/regions", data))["images"][0]["regions"]).reshape(4, 4, C)
        for data in (A, mirrored)
    ]
    np.testing.assert_allclose(maps[1], maps[0][:, ::-1], atol=1e-5)


# POST /correspond


def test_a_picture_corresponds_with_itself_by_identity(client):
    content = good(post_form(client, "/correspond", [A, A]))
    assert len(content["matches"]) == L
    for query, match in enumerate(content["matches"]):
        assert match["query"] == query
        assert match["source"] == match["target"]
        assert match["source"] == [6 + 8 * (query % 4), 6 + 8 * (query // 4)]
        assert match["score"] == pytest.approx(1, abs=1e-5)
        assert match["mutual"] is True
    assert content["source"] == content["target"] == {"width": 36, "height": 36}


def test_a_mirrored_picture_corresponds_mirrored(client):
    mirrored = png(SQUARE.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    for match in good(post_form(client, "/correspond", [A, mirrored]))["matches"]:
        assert match["target"] == [36 - match["source"][0], match["source"][1]]


def test_matches_equal_the_written_out_search(client):
    content = good(post_json(client, "/correspond", [A, B]))
    everything = [True] * L
    wanted = oracles.correspond(
        expected(SQUARE)["regions"], expected(OTHER)["regions"], everything, everything
    )
    for match, (query, best, score, mutual) in zip(content["matches"], wanted, strict=True):
        assert match["query"] == query
        assert match["target"] == [6 + 8 * (best % 4), 6 + 8 * (best // 4)]
        assert match["score"] == pytest.approx(score, abs=1e-5)
        assert match["mutual"] == mutual


@pytest.mark.parametrize("form", [post_raw, lambda c, p, image: post_form(c, p, [image])])
def test_a_single_picture_is_compared_with_its_other_regions(client, form):
    matches = good(form(client, "/correspond", A))["matches"]
    assert len(matches) == L
    assert all(match["source"] != match["target"] for match in matches)


def test_matches_are_chosen_as_asked(client):
    every = good(post_json(client, "/correspond", [A, B]))["matches"]
    best = good(post_json(client, "/correspond", [A, B], top_k=3))["matches"]
    assert best == sorted(every, key=lambda match: -match["score"])[:3]
    mutual = good(post_json(client, "/correspond", [A, B], mutual_only=True))["matches"]
    assert mutual == [match for match in every if match["mutual"]]
    score = every[4]["score"] - 1e-6
    high = good(post_json(client, "/correspond", [A, B], min_score=score))["matches"]
    assert high == [match for match in every if match["score"] >= score]


def test_asked_points_are_found(client):
    points = [[10, 20], [2, 2], [34, 34]]
    matches = good(post_json(client, "/correspond", [A, A], points=points))["matches"]
    assert [match["source"] for match in matches] == points
    assert [match["target"] for match in matches] == [[14, 22], [6, 6], [30, 30]]


def test_subcell_positions_are_finer(client):
    shifted = png(scene(72, 72, seed=3).crop((3, 0, 72, 69)))
    pair = [png(scene(72, 72, seed=3)), shifted]
    coarse = good(post_json(client, "/correspond", pair))["matches"]
    fine = good(post_json(client, "/correspond", pair, subcell=True))["matches"]
    offsets = np.array([m["target"] for m in fine]) - [m["target"] for m in coarse]
    cell = 69 / 36 * 8
    assert 0 < np.abs(offsets).max() <= cell / 2 + 0.001


def test_the_padded_border_is_never_matched(client):
    wide = png(scene(128, 48, seed=5))
    for pair in ([A, wide], [wide, A]):
        content = good(post_json(client, "/correspond", pair, fit="pad"))
        assert content["matches"]
        for match in content["matches"]:
            for end in ("source", "target"):
                assert 0 <= match[end][0] <= content[end]["width"]
                assert 0 <= match[end][1] <= content[end]["height"]


def test_matches_are_the_same_in_every_encoding(client):
    matches = good(post_json(client, "/correspond", [A, B]))["matches"]
    rows = [[m["query"], *m["source"], *m["target"], m["score"], m["mutual"]] for m in matches]
    text = good(post_json(client, "/correspond", [A, B], encoding_format="base64"))["matches"]
    np.testing.assert_allclose(floats(text).reshape(-1, 7), rows, atol=1e-5)
    file = npy(post_json(client, "/correspond", [A, B], accept="application/x-npy"))
    np.testing.assert_allclose(file, rows, atol=1e-5)


# POST /attention


def test_attention_is_the_models_pooled_over_queries(client):
    content = good(post_raw(client, "/attention", A, head="all"))
    assert (content["num_heads"], content["grid"]) == (HEADS, [4, 4])
    wanted = expected(SQUARE)["attention"].mean(axis=1).reshape(HEADS, 4, 4)
    np.testing.assert_allclose(content["images"][0]["attention"], wanted, atol=1e-5)


@pytest.mark.parametrize("head", [0, 1, "mean"])
def test_attention_of_a_point_is_the_row_of_its_region(client, head):
    content = good(post_raw(client, "/attention", A, head=head, query=[20, 12]))
    rows = expected(SQUARE)["attention"][:, 6]  # (20 - 2) / 8, (12 - 2) / 8: column 2 of row 1
    wanted = rows.mean(axis=0) if head == "mean" else rows[head]
    (attention,) = content["images"][0]["attention"]
    np.testing.assert_allclose(np.ravel(attention), wanted, atol=1e-5)


@pytest.mark.parametrize(("head", "heads"), [("all", HEADS), (1, 1)])
def test_attention_of_all_queries_is_the_models_own(client, head, heads):
    rows = expected(SQUARE)["attention"]
    wanted = (rows if head == "all" else rows[1:2]).reshape(heads, 16, 4, 4)
    values = good(post_raw(client, "/attention", A, head=head, query="all"))
    np.testing.assert_allclose(values["images"][0]["attention"], wanted, atol=1e-5)
    file = npy(
        post_raw(client, "/attention", A, head=head, query="all", accept="application/x-npy")
    )
    np.testing.assert_allclose(file, wanted[None], atol=1e-5)


def test_attention_is_the_same_in_every_encoding(client):
    values = good(post_raw(client, "/attention", A, head="all"))["images"][0]["attention"]
    values = np.array(values, np.float32)
    answer = good(post_raw(client, "/attention", A, head="all", encoding_format="base64"))
    np.testing.assert_array_equal(floats(answer["images"][0]["attention"]), values.ravel())
    file = npy(post_raw(client, "/attention", A, head="all", accept="application/x-npy"))
    np.testing.assert_array_equal(file, values[None])
    assert npy(post_raw(client, "/attention", A, accept="application/x-npy")).shape == (1, 1, 4, 4)


def test_a_drawing_of_one_picture_is_a_png_as_large_as_it(client):
    for options in ({"render": "heatmap"}, {"accept": "image/png"}):
        response = post_raw(client, "/attention", png(scene(50, 40)), **options)
        assert response.headers["content-type"] == "image/png"
        assert response.headers["x-esvit-model"] == "tiny"
        assert read_png(response.content).shape == (40, 50, 4)
    overlay = post_raw(client, "/attention", png(scene(50, 40)), render="overlay")
    assert read_png(overlay.content).shape == (40, 50, 3)


def test_drawings_of_several_pictures_come_in_json(client):
    images = [png(scene(50, 40)), b"no picture", png(scene(30, 20))]
    content = good(post_json(client, "/attention", images, render="overlay"))
    first, bad, last = content["images"]
    assert bad is None
    assert read_png(base64.b64decode(first["png"])).shape == (40, 50, 3)
    assert read_png(base64.b64decode(last["png"])).shape == (20, 30, 3)


def test_a_drawing_of_one_picture_comes_in_json_if_asked(client):
    content = good(post_raw(client, "/attention", A, render="heatmap", accept="application/json"))
    assert read_png(base64.b64decode(content["images"][0]["png"])).shape == (36, 36, 4)


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_a_photograph_corresponds_with_its_turned_self(client, path):
    with Image.open(path) as photograph:
        turned = png(photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        width = photograph.width
    pair = [path.read_bytes(), turned]
    matches = good(post_form(client, "/correspond", pair, fit="stretch"))["matches"]
    found = [abs(width - m["source"][0] - m["target"][0]) < 0.01 for m in matches]
    assert np.mean(found) > 0.8


def test_a_query_outside_one_of_several_pictures_fails_that_one_alone(client):
    wide, small = png(scene(64, 40)), png(scene(20, 20))
    options = {"query": [50, 20], "fit": "stretch"}
    answer = post_json(client, "/attention", [wide, small], **options).json()
    assert answer["images"][0] is not None
    assert answer["images"][1] is None
    (error,) = answer["errors"]
    assert (error["index"], error["code"]) == (1, "region_out_of_bounds")
    refused = post_json(client, "/attention", [wide, small], **options, on_error="fail")
    assert refused.status_code == 422
    assert refused.json()["error"]["index"] == 1
