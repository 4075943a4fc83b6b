import re

import pytest

from service.app import create_app
from service.pages import STATIC
from tests.service.calls import refused
from tests.service.server import serve


def test_the_page_runs_nothing_but_its_own(client):
    response = client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", ["docs.html", "docs.css", "docs.js"])
def test_pages_name_no_other_host(name):
    assert not re.search(r"(?:https?:)?//[a-z]", (STATIC / name).read_text())


@pytest.mark.parametrize("path", ["/embed", "/livez", "/nowhere"])
def test_every_answer_forbids_guessing_its_type(client, path):
    assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_the_description_can_be_switched_off(settings):
    with serve(create_app(settings.model_copy(update={"docs": False}))) as client:
        refused(client.get("/docs"), 404, "not_found")
        refused(client.get("/openapi.json"), 404, "not_found")
        assert client.get("/livez").status_code == 200
