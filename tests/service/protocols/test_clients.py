"""Clients of other services, unchanged: each real package, in a process of its own environment.

`make clients` installs them and runs these tests.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.service.calls import post_form, post_json
from tests.service.known import A, B, floats, good, unit
from tests.service.tiny_model import HEADS, C, D, L

pytestmark = pytest.mark.clients

ROOT = Path(__file__).parents[3]
CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "a.png").write_bytes(A)
    (folder / "b.png").write_bytes(B)
    return [str(folder / "a.png"), str(folder / "b.png")]


@pytest.fixture(scope="module")
def own(client):
    return np.array(good(post_form(client, "/embed", [A, B]))["embeddings"], np.float32)


@pytest.fixture
def ask(client, paths):
    def run(program: str, environment: str = "clients") -> dict:
        python = ROOT / ".venv" / environment / "bin" / "python"
        if not python.exists():
            pytest.skip(f"{python} is not there: `make clients` installs the clients")
        url = str(client.base_url).rstrip("/")
        command = [python, CLIENTS / f"{program}.py", url, *paths]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_tritonclient(ask, client, own):
    said = ask("use_tritonclient")
    assert said["live"]
    assert said["ready"]
    assert said["model_ready"]
    assert said["server"] == "esvit"
    assert said["names"] == ["EMBEDDING", "REGIONS", "ATTENTION", "LAST_BLOCKS", "MATCHES"]
    shapes = [(2, C), (2, L, C), (2, HEADS, L, L), (2, D), (L, 7)]
    np.testing.assert_array_equal(np.array(said["gzip"]["EMBEDDING"], np.float32), own)
    for form in ("binary", "json"):
        assert [np.shape(said[form][name]) for name in said["names"]] == shapes
        np.testing.assert_array_equal(np.array(said[form]["EMBEDDING"], np.float32), own)
    regions = good(post_form(client, "/regions", [A, B]))["images"]
    np.testing.assert_allclose(
        said["binary"]["REGIONS"], [image["regions"] for image in regions], atol=1e-6
    )
    matches = good(post_json(client, "/correspond", [A, B], encoding_format="base64"))["matches"]
    np.testing.assert_array_equal(
        np.ravel(said["json"]["MATCHES"]).astype(np.float32), floats(matches)
    )
    for name in said["names"]:
        np.testing.assert_array_equal(
            np.array(said["binary"][name], np.float32), np.array(said["json"][name], np.float32)
        )
    assert list(said["default"]) == said["names"][:4]
    status, message = said["unknown_output"]
    assert (status, "unknown output" in message) == ("400", True)
    status, message = said["unknown_model"]
    assert (status, "no such model" in message) == ("404", True)
    status, message = said["bad_image"]
    assert (status, "no image" in message) == ("400", True)


def test_openai(ask, own):
    said = ask("use_openai")
    assert said["models"] == ["tiny"]
    for form in ("default", "float", "async"):
        np.testing.assert_array_equal(np.array(said[form], np.float32), own)
    np.testing.assert_allclose(said["cut"], unit(own[:, :4]), atol=1e-6)
    code, param, message = said["refusal"]
    assert (code, param) == ("invalid_base64", "input[1]")
    assert "pictures only" in message


def test_haystack_with_jina(ask, own):
    said = ask("use_jina_haystack")
    np.testing.assert_array_equal(np.array(said["float"], np.float32), own)
    assert said["refusal"].startswith("Jina API error: bytes are no image")


def test_cohere(ask, own):
    said = ask("use_cohere")
    for form in ("float", "inputs"):
        np.testing.assert_array_equal(np.array(said[form], np.float32), own)
    np.testing.assert_array_equal([floats(text) for text in said["base64"]], own)
    assert "pictures only" in said["refusal"]


def test_haystack_with_cohere(ask, own):
    said = ask("use_cohere_haystack")
    np.testing.assert_array_equal(np.array(said["float"], np.float32), own)


def test_llama_index_with_cohere(ask, own):
    said = ask("use_llama_index", "clients-llama-index")
    np.testing.assert_array_equal(np.array(said["float"], np.float32), own)
    np.testing.assert_array_equal(np.array(said["single"], np.float32), own[:1])
