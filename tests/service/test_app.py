"""What every endpoint does with images, and what the service says of itself."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from service import VERSION
from tests.service.calls import post_form, post_json, post_raw, refused
from tests.service.known import A, B, good, npy
from tests.service.pictures import jpeg, png, scene
from tests.service.tiny_model import INFO

BAD = b"\x89PNG, or perhaps not"

ENDPOINTS = ["/embed", "/regions", "/attention"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("options", [{}, {"fit": "pad", "encoding_format": "base64"}])
def test_the_three_forms_of_input_and_of_options_give_the_same_answer(client, endpoint, options):
    raw = good(post_raw(client, endpoint, A, **options))
    assert good(post_form(client, endpoint, [A], **options)) == raw
    assert good(post_json(client, endpoint, [A], **options)) == raw
    data_uri = {"data_uri": "data:image/png;base64," + base64.b64encode(A).decode()}
    assert good(client.post(endpoint, json={"images": [data_uri]} | options)) == raw
    assert good(client.post(endpoint, files={"x": A}, params=options)) == raw


@pytest.mark.parametrize("options", [{}, {"top_k": 3, "points": [[10, 10], [20.5, 9]]}])
def test_the_forms_of_a_pair_give_the_same_answer(client, options):
    by_form = good(post_form(client, "/correspond", [A, B], **options))
    assert good(post_json(client, "/correspond", [A, B], **options)) == by_form


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_bad_image_leaves_its_neighbours_alone(client, endpoint):
    content = good(post_json(client, endpoint, [A, BAD, B]))
    answers = content["embeddings" if endpoint == "/embed" else "images"]
    alone = [good(post_json(client, endpoint, [image])) for image in (A, B)]
    first, last = (content["embeddings" if endpoint == "/embed" else "images"] for content in alone)
    assert answers[1] is None
    if endpoint != "/embed":
        last[0]["index"] = 2
    assert answers == [first[0], None, last[0]]
    (error,) = content["errors"]
    assert (error["index"], error["code"]) == (1, "undecodable_image")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_npy_holds_nan_for_a_bad_image_and_names_it_in_a_header(client, endpoint):
    response = post_json(client, endpoint, [A, BAD], accept="application/x-npy")
    array = npy(response)
    assert np.isfinite(array[0]).all()
    assert np.isnan(array[1]).all()
    (error,) = json.loads(response.headers["x-esvit-errors"])
    assert (error["index"], error["code"]) == (1, "undecodable_image")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_one_bad_image_fails_the_request_if_asked(client, endpoint):
    response = post_json(client, endpoint, [A, BAD, B], on_error="fail")
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], error["index"]) == ("undecodable_image", 1)


def test_of_only_bad_images_all_are_named(client):
    content = good(post_json(client, "/embed", [BAD, b"GIF89a", A[:100]]))
    assert content["embeddings"] == [None, None, None]
    assert [(error["index"], error["code"]) for error in content["errors"]] == [
        (0, "undecodable_image"),
        (1, "unsupported_image_format"),
        (2, "undecodable_image"),
    ]


def test_one_picture_has_one_vector_alone_in_a_batch_and_under_load(client):
    images = [jpeg(scene(90 + n, 70, seed=n)) for n in range(8)]
    alone = [good(post_raw(client, "/embed", image))["embeddings"][0] for image in images]
    batch = good(post_form(client, "/embed", images))["embeddings"]
    np.testing.assert_allclose(batch, alone, atol=1e-5)
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda n: post_raw(client, "/embed", images[n % 8]), range(64)))
    for n, response in enumerate(loaded):
        np.testing.assert_allclose(good(response)["embeddings"][0], alone[n % 8], atol=1e-5)


def test_orientation_is_undone_and_sizes_are_those_of_the_upright_picture(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = png(scene(96, 72).transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert good(post_raw(client, "/regions", turned)) == good(
        post_raw(client, "/regions", png(scene(96, 72)))
    )


def test_info_says_what_is_served(client, settings):
    content = good(client.get("/info"))
    assert content["outputs"] == {name: list(shape) for name, shape in INFO.outputs.items()}
    assert content["preprocess"]["resize"] == 36
    assert content["training"] is None
    assert (content["engine"], content["precision"]) == ("onnxruntime", "fp32")
    assert content["provider"] == "CPUExecutionProvider"
    assert content["version"] == VERSION
    assert content["limits"]["max_images"] == settings.max_images
    assert "format" not in content


@pytest.mark.parametrize(("path", "status"), [("/livez", "alive"), ("/readyz", "ready")])
def test_the_service_is_alive_and_ready(client, path, status):
    assert client.get(path).json() == {"status": status}


def test_metrics_count_what_happens(client):
    def sample(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = [
        "esvit_images_total",
        'esvit_requests_total{path="/embed",status="200"}',
        'esvit_requests_total{path="/embed",status="422"}',
        'esvit_refusals_total{code="undecodable_image"}',
        "esvit_decode_seconds_count",
    ]
    before = [sample(name) for name in names]
    post_json(client, "/embed", [A, BAD, B])
    post_raw(client, "/embed", BAD)
    changes = [sample(name) - old for name, old in zip(names, before, strict=True)]
    assert changes == [2, 1, 1, 2, 2]
    assert sample("esvit_in_flight_images") == 0
    assert sample('esvit_model_info{engine="onnxruntime",model="tiny"') == 1


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_that_want_no_body_are_answered(client, path):
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")


def test_a_path_with_a_slash_too_many_is_not_there(client):
    refused(client.post("/embed/", follow_redirects=False), 404, "not_found")


def test_the_document_describes_every_endpoint(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) >= {"/embed", "/regions", "/correspond", "/attention", "/info"}
    for path in ("/embed", "/regions", "/correspond", "/attention"):
        call = document["paths"][path]["post"]
        assert {"application/json", "multipart/form-data", "image/jpeg"} <= set(
            call["requestBody"]["content"]
        )
        assert {"200", "400", "408", "413", "415", "422", "429", "503"} <= set(call["responses"])
    form = document["paths"]["/correspond"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["source", "target"]
    assert client.get("/docs").status_code == 200
