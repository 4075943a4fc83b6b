import base64
import json
import struct

import numpy as np
import pytest

from service import VERSION
from tests.service.calls import post_form
from tests.service.known import OTHER, SQUARE, A, B, expected, floats, good, unit
from tests.service.tiny_model import HEADS, C, D, L

INFER = "/v2/models/tiny/infer"
OUTPUTS = ("EMBEDDING", "REGIONS", "ATTENTION", "LAST_BLOCKS")


def by_json(client, images, outputs=(), **more):
    data = [base64.b64encode(image).decode() for image in images]
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [len(images)], "data": data}
    wanted = {"outputs": [name if isinstance(name, dict) else {"name": name} for name in outputs]}
    return client.post(INFER, json={"inputs": [tensor]} | wanted | more)


def by_binary(client, images, outputs=(), path=INFER):
    tail = b"".join(struct.pack("<I", len(image)) + image for image in images)
    tensor = {
        "name": "IMAGE",
        "datatype": "BYTES",
        "shape": [len(images)],
        "parameters": {"binary_data_size": len(tail)},
    }
    content = {"inputs": [tensor], "outputs": [{"name": name} for name in outputs]}
    content["parameters"] = {"binary_data_output": True}
    header = json.dumps(content).encode()
    lengths = {"inference-header-content-length": str(len(header))}
    return client.post(path, content=header + tail, headers=lengths)


def arrays(response):
    """Read the outputs of an answer, in JSON or binary."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get("inference-header-content-length", len(response.content)))
    content, tail = json.loads(response.content[:length]), response.content[length:]
    assert (content["model_name"], content["model_version"]) == ("tiny", "1")
    found = {}
    for output in content["outputs"]:
        assert output["datatype"] == "FP32"
        if "data" in output:
            flat = np.array(output["data"], np.float32)
        else:
            size = output["parameters"]["binary_data_size"]
            flat, tail = np.frombuffer(tail[:size], "<f4"), tail[size:]
        found[output["name"]] = flat.reshape(output["shape"])
    assert tail == b""
    return found


@pytest.mark.parametrize("send", [by_json, by_binary])
def test_all_outputs_of_several_pictures_at_once_are_those_of_the_model(client, send):
    found = arrays(send(client, [A, B]))
    assert tuple(found) == OUTPUTS
    for row, picture in enumerate((SQUARE, OTHER)):
        truth = expected(picture)
        for name in OUTPUTS:
            values = truth[name.lower()].reshape(found[name][row].shape)
            values = values if name == "ATTENTION" else unit(values)
            np.testing.assert_allclose(found[name][row], values, atol=1e-5)


def test_embeddings_equal_those_of_our_own_endpoint(client):
    found = arrays(by_binary(client, [A, B], ["EMBEDDING"]))
    own = good(post_form(client, "/embed", [A, B]))["embeddings"]
    np.testing.assert_array_equal(found["EMBEDDING"], np.array(own, np.float32))


@pytest.mark.parametrize("images", [[A, B], [A]])
def test_matches_equal_those_of_our_own_endpoint(client, images):
    found = arrays(by_binary(client, images, ["MATCHES", "EMBEDDING"]))
    own = good(post_form(client, "/correspond", images, encoding_format="base64"))
    np.testing.assert_array_equal(found["MATCHES"], floats(own["matches"]).reshape(-1, 7))
    assert found["EMBEDDING"].shape == (len(images), C)


def test_each_output_has_the_form_that_was_asked_for(client):
    binary = {"name": "EMBEDDING", "parameters": {"binary_data": True}}
    response = by_json(client, [A], [binary, "LAST_BLOCKS"])
    length = int(response.headers["inference-header-content-length"])
    assert len(response.content) - length == 4 * C
    found = arrays(response)
    both = arrays(by_json(client, [A], ["EMBEDDING", "LAST_BLOCKS"]))
    for name in ("EMBEDDING", "LAST_BLOCKS"):
        np.testing.assert_array_equal(found[name], both[name])


def test_the_id_comes_back(client):
    assert by_json(client, [A], id="mine").json()["id"] == "mine"
    assert "id" not in by_json(client, [A]).json()


def test_parameters_choose_what_the_model_sees_and_the_scale(client):
    (raw,) = arrays(by_json(client, [A], ["EMBEDDING"], parameters={"normalize": False})).values()
    np.testing.assert_allclose(raw[0], expected(SQUARE)["embedding"], atol=1e-5)
    (padded,) = arrays(by_json(client, [A], ["EMBEDDING"], parameters={"fit": "pad"})).values()
    assert not np.allclose(padded, unit(raw))


def test_the_model_describes_itself(client):
    assert client.get("/v2").json() == {
        "name": "esvit",
        "version": VERSION,
        "extensions": ["binary_tensor_data"],
    }
    content = client.get("/v2/models/tiny").json()
    assert client.get("/v2/models/tiny/versions/1").json() == content
    assert (content["name"], content["versions"]) == ("tiny", ["1"])
    (image,) = content["inputs"]
    assert (image["name"], image["datatype"], image["shape"]) == ("IMAGE", "BYTES", [-1])
    assert {output["name"]: output["shape"] for output in content["outputs"]} == {
        "EMBEDDING": [-1, C],
        "REGIONS": [-1, L, C],
        "ATTENTION": [-1, HEADS, L, L],
        "LAST_BLOCKS": [-1, D],
        "MATCHES": [-1, 7],
    }
    (listed,) = client.post("/v2/repository/index").json()
    assert (listed["name"], listed["state"]) == ("tiny", "READY")


HEALTH = ["health/live", "health/ready", "models/tiny/ready", "models/tiny/versions/1/ready"]


@pytest.mark.parametrize("path", HEALTH)
def test_health_is_an_empty_answer(client, path):
    response = client.get(f"/v2/{path}")
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("path", ["models/other", "models/tiny/versions/2", "models/other/ready"])
def test_other_models_and_versions_are_not_there(client, path):
    response = client.get(f"/v2/{path}")
    assert response.status_code == 404
    assert set(response.json()) == {"error"}
    assert "served is" in response.json()["error"]


def refused(response, status):
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    return response.json()["error"]


def test_refusals_are_400_and_say_where(client):
    assert refused(by_binary(client, [A, A[:99]]), 400).startswith("image 1: ")
    assert "unknown output; known are EMBEDDING" in refused(by_json(client, [A], ["SMELL"]), 400)
    assert "one picture or two" in refused(by_json(client, [A] * 3, ["MATCHES"]), 400)
    assert refused(client.post(INFER, content=b"{"), 400).startswith("the body is not JSON")
    assert refused(by_binary(client, [A], path="/v2/models/other/infer"), 404)
    assert refused(client.get("/v2/nothing/here"), 404) == "Not Found"
    assert refused(client.get(INFER), 405) == "expected POST"


def test_limits_keep_their_status(client, settings):
    too_many = [A] * (settings.max_images + 1)
    assert "at most 64 images" in refused(by_binary(client, too_many), 413)
    squeezed = client.post(INFER, content=b"x", headers={"content-encoding": "br"})
    refused(squeezed, 415)
