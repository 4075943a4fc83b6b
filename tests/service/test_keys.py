"""API keys and pages of other origins."""

import logging

import pytest
from pydantic import ValidationError

from service.app import create_app
from service.settings import Settings
from tests.service.calls import post_raw, refused
from tests.service.known import A
from tests.service.server import serve

FIRST, SECOND, OF_FILE = "first-key-0123456789", "second-key-0123456789", "key-of-file-0123456789"
ORIGIN = "https://app.example.org"


@pytest.fixture(scope="module")
def closed(settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"# comment\n\n {OF_FILE} \n")
    opened = Settings(
        model=settings.model,
        engine="onnxruntime",
        device="cpu",
        threads=2,
        api_keys=f"{FIRST},{SECOND}",
        api_keys_file=path,
        cors_origins=ORIGIN,
    )
    with serve(create_app(opened)) as client:
        yield client


@pytest.mark.parametrize("key", [FIRST, SECOND, OF_FILE])
def test_every_key_opens_in_either_header(closed, key):
    for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
        assert closed.get("/info", headers=headers).status_code == 200
        answer = closed.post("/embed", content=A, headers={"content-type": "image/png", **headers})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {FIRST}x"},
        {"authorization": f"Bearer {FIRST[:-1]}"},
        {"authorization": f"Basic {FIRST}"},
        {"authorization": FIRST},
        {"x-api-key": ""},
        {"x-api-key": "\xe4" * 20},
        {"authorization": "Bearer wrong", "x-api-key": FIRST},
        {"cookie": f"key={FIRST}"},
    ],
    ids=range(10),
)
@pytest.mark.parametrize("path", ["/info", "/metrics", "/nowhere"])
def test_without_a_key_nothing_is_told(closed, headers, path):
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    response = closed.get(path, headers=encoded)
    error = refused(response, 401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert FIRST not in error["message"]


def test_a_key_in_the_query_does_not_open(closed):
    refused(closed.get(f"/info?api_key={FIRST}"), 401, "unauthorized")


def test_images_without_a_key_are_not_looked_at(closed):
    refused(post_raw(closed, "/embed", b"no image"), 401, "unauthorized")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/docs", "/openapi.json", "/v2/health/live"])
def test_probes_and_pages_need_no_key(closed, path):
    assert closed.get(path).status_code == 200


def test_the_document_says_how_to_bring_a_key(closed, client):
    document = closed.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
    assert document["security"] == [{name: []} for name in schemes]
    assert "security" not in client.get("/openapi.json").json()


def test_open_paths_are_open_for_reading_alone(closed):
    refused(closed.post("/livez"), 401, "unauthorized")
    refused(closed.get("/static/../info"), 401, "unauthorized")


def test_other_protocols_are_refused_in_their_shape(closed):
    openai = closed.post("/v1/embeddings", json={})
    assert openai.status_code == 401
    assert openai.json()["error"]["type"] == "authentication_error"
    assert isinstance(closed.post("/v2/models/tiny/infer").json()["error"], str)


def test_keys_are_in_no_log_and_no_settings_shown(closed, caplog, settings):
    caplog.set_level(logging.DEBUG)
    closed.get("/info", headers={"x-api-key": FIRST})
    closed.get("/info", headers={"x-api-key": "a-wrong-key-000000"})
    assert "service.access" in {record.name for record in caplog.records}
    assert "key-0" not in caplog.text
    assert FIRST not in repr(settings.model_copy(update=Settings(api_keys=FIRST).model_dump()))


@pytest.mark.parametrize("bad", ["short", "ä" * 20, f"{FIRST},short"])
def test_a_key_that_can_be_guessed_is_refused_at_start_and_not_shown(bad):
    with pytest.raises(ValidationError, match="API key") as caught:
        Settings(api_keys=bad)
    assert bad not in str(caught.value)


def test_a_file_without_keys_does_not_open_the_door(tmp_path):
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(ValidationError, match="holds no key"):
        Settings(api_keys_file=tmp_path / "keys")


def test_pages_of_the_origin_that_is_let_in_may_call(closed):
    asks = {"origin": ORIGIN, "access-control-request-method": "POST"}
    asks["access-control-request-headers"] = "authorization, content-type"
    preflight = closed.options("/embed", headers=asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    refusal = closed.get("/info", headers={"origin": ORIGIN})
    assert refusal.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in refusal.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in refusal.headers


def test_other_origins_are_not_let_in(closed, client):
    other = closed.get("/livez", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    by_default = client.get("/livez", headers={"origin": ORIGIN})
    assert not [name for name in by_default.headers if name.startswith("access-control")]
