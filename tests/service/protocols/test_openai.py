import base64

import numpy as np
import pytest

from tests.service.calls import post_form
from tests.service.known import A, B, floats, good, unit
from tests.service.tiny_model import C

TEXT = base64.b64encode(A).decode()
URI = f"data:image/png;base64,{TEXT}"


def embed(client, inputs, **more):
    return client.post("/v1/embeddings", json={"model": "esvit", "input": inputs} | more)


@pytest.fixture(scope="module")
def own(client):
    return np.array(good(post_form(client, "/embed", [A, B]))["embeddings"], np.float32)


FORMS = [
    URI,
    TEXT,
    {"image": TEXT},
    {"image": URI},
    {"bytes": TEXT},
    {"image": {"url": URI}},
    {"type": "image_url", "image_url": {"url": URI}},
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture_gives_the_vector_of_our_own_endpoint(client, own, form):
    for inputs in (form, [form]):
        content = embed(client, inputs).json()
        (item,) = content["data"]
        assert (item["object"], item["index"]) == ("embedding", 0)
        np.testing.assert_array_equal(np.array(item["embedding"], np.float32), own[0])
    assert (content["object"], content["model"]) == ("list", "tiny")
    assert content["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize("name", ["encoding_format", "embedding_type", "encoding_type"])
def test_base64_is_asked_for_under_three_names(client, own, name):
    texts = [TEXT, base64.b64encode(B).decode()]
    data = embed(client, texts, **{name: "base64"}).json()["data"]
    assert [item["index"] for item in data] == [0, 1]
    np.testing.assert_array_equal([floats(item["embedding"]) for item in data], own)


def test_dimensions_cut_and_normalize_again(client, own):
    (item,) = embed(client, URI, dimensions=5).json()["data"]
    np.testing.assert_allclose(item["embedding"], unit(own[0, :5]), atol=1e-6)


def test_what_other_services_understand_is_ignored(client):
    foreign = {"modality": "image", "normalized": True, "task": "x", "truncate": True, "user": "me"}
    assert embed(client, URI, **foreign).status_code == 200


def test_models_are_listed(client):
    content = client.get("/v1/models").json()
    assert content["object"] == "list"
    assert content["data"] == [{"id": "tiny", "object": "model", "created": 0, "owned_by": "esvit"}]


REFUSED = {
    "a sentence": (["a cat on a mat"], "input[0]", "invalid_base64"),
    "a second, bad one": ([URI, "data:text/plain;base64,YQ=="], "input[1]", "invalid_base64"),
    "a text": ([{"text": "a cat"}], "input[0]", "invalid_request"),
    "a text part": ([URI, {"type": "text", "text": ""}], "input[1]", "invalid_request"),
    "tokens": ([1, 2], "input[0]", "invalid_request"),
    "an unknown form": ([{"picture": TEXT}], "input[0]", "invalid_request"),
    "nothing": ([], None, "invalid_request"),
    "none": (None, "input[0]", "invalid_request"),
    "an address": (["http://example.com/a.png"], None, "urls_disabled"),
    "no image": ([URI, base64.b64encode(b"no").decode()], "input[1]", "undecodable_image"),
}


@pytest.mark.parametrize(("inputs", "param", "code"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_has_the_shapes_that_openai_and_jina_clients_read(client, inputs, param, code):
    response = embed(client, inputs)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert response.json()["detail"].endswith(error["message"])


def test_statuses_are_kept_and_typed(client, settings):
    many = embed(client, [TEXT] * (settings.max_images + 1))
    assert (many.status_code, many.json()["error"]["code"]) == (413, "batch_too_large")
    lost = client.get("/v1/nothing")
    assert (lost.status_code, lost.json()["error"]["type"]) == (404, "not_found_error")
    assert embed(client, URI, dimensions=C + 1).json()["error"]["param"] == "dimensions"
    assert embed(client, URI, encoding_format="ubinary").status_code == 400
    assert client.post("/v1/embeddings", content=b"[]").status_code == 400
