import base64

import numpy as np
import pytest

from tests.service.calls import post_form
from tests.service.known import A, B, floats, good, unit

A_URI, B_URI = (f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in (A, B))
IMAGES = {"images": [A_URI, B_URI]}
INPUTS = {
    "inputs": [
        {"content": [{"type": "image_url", "image_url": {"url": uri}}]} for uri in (A_URI, B_URI)
    ]
}


def embed(client, content):
    return client.post("/v2/embed", json={"model": "embed-v4.0", "input_type": "image"} | content)


@pytest.fixture(scope="module")
def own(client):
    return np.array(good(post_form(client, "/embed", [A, B]))["embeddings"], np.float32)


@pytest.mark.parametrize("pictures", [IMAGES, INPUTS])
def test_both_forms_give_the_vectors_of_our_own_endpoint(client, own, pictures):
    response = embed(client, pictures)
    content = response.json()
    np.testing.assert_array_equal(np.array(content["embeddings"]["float"], np.float32), own)
    assert content["id"] == response.headers["x-request-id"]
    assert content["response_type"] == "embeddings_by_type"
    assert content["meta"]["billed_units"] == {"images": 2}
    assert content["texts"] == []


def test_two_types_come_in_one_call(client, own):
    types = {"embedding_types": ["float", "base64"]}
    embeddings = embed(client, IMAGES | types).json()["embeddings"]
    assert set(embeddings) == {"float", "base64"}
    np.testing.assert_array_equal([floats(text) for text in embeddings["base64"]], own)


def test_the_output_dimension_cuts_and_normalizes_again(client, own):
    (first, _) = embed(client, IMAGES | {"output_dimension": 4}).json()["embeddings"]["float"]
    np.testing.assert_allclose(first, unit(own[0, :4]), atol=1e-6)


REFUSED = {
    "texts": ({"texts": ["a cat"]}, "texts: "),
    "nothing": ({}, "images: "),
    "both": (IMAGES | INPUTS, "images: "),
    "none": ({"images": []}, ""),
    "a sentence": ({"images": [A_URI, "a cat"]}, "images[1]: "),
    "no picture": ({"images": [A_URI, A_URI[:400]]}, "images[1]: "),
    "a text content": ({"inputs": [{"content": [{"type": "text", "text": "a"}]}]}, "inputs[0]: "),
    "two contents": ({"inputs": [{"content": [A_URI, B_URI]}]}, "inputs[0]: "),
    "no content": ({"inputs": ["x", 7]}, "inputs[0]: "),
    "other types": (IMAGES | {"embedding_types": ["int8"]}, "embedding_types.0: "),
    "no types": (IMAGES | {"embedding_types": []}, "embedding_types: "),
}


@pytest.mark.parametrize(("content", "where"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_has_an_id_and_a_message_that_says_where(client, content, where):
    response = embed(client, content)
    assert response.status_code == 422
    assert set(response.json()) == {"id", "message"}
    assert response.json()["id"] == response.headers["x-request-id"]
    assert response.json()["message"].startswith(where)


def test_too_many_are_413(client, settings):
    response = embed(client, {"images": [A_URI] * (settings.max_images + 1)})
    assert response.status_code == 413
    assert "message" in response.json()
