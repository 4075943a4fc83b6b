"""The page's files as the service gives them."""

import re

import pytest

from service.pages import STATIC
from tests.service.calls import refused

FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())


def test_the_page_may_load_nothing_from_elsewhere(client):
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_served_and_names_no_other_host(client, path):
    response = client.get(f"/static/{path.relative_to(STATIC)}")
    assert response.content == path.read_bytes()
    hosts = set(re.findall(r"https?://([\w.]+)", path.read_text()))
    assert hosts <= {"www.w3.org"}  # the name of SVG, which is not fetched
    assert not re.search(r"<script>|<style>|\son\w+=|\sstyle=", path.read_text())


def test_a_page_that_was_delivered_is_no_departure(client):
    assert client.get("/photographs/cat.jpg").status_code == 200
    lines = [line for line in client.get("/metrics").text.splitlines() if 'path="other"' in line]
    assert any('status="200"' in line for line in lines)
    assert not any('status="499"' in line for line in lines)


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/photographs/cat.jpg"])
def test_browsers_keep_files_and_ask_whether_they_changed(client, path):
    first = client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["x-content-type-options"] == "nosniff"
    again = client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = client.head(path)
    assert head.headers["content-length"] == first.headers["content-length"]


def test_modules_import_only_files_that_are_there():
    for path in FILES:
        for name in re.findall(r'from "(\./[^"]+|\.\./[^"]+)"', path.read_text()):
            assert (path.parent / name).is_file(), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", ["/static/none.js", "/static/../app.py", "/static/%2e%2e/app.py"])
def test_nothing_else_is_served(client, path):
    refused(client.get(path), 404, "not_found")


@pytest.mark.parametrize("path", ["/", "/static/main.js"])
def test_files_are_only_read(client, path):
    refused(client.post(path), 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/", "/docs", "/static/main.js", "/photographs/cat.jpg"])
@pytest.mark.parametrize("wanted", ["bytes=a-b", "bytes=5-1", "bytes=0-0"])
def test_files_are_given_whole_whatever_range_is_asked_for(client, path, wanted):
    response = client.get(path, headers={"range": wanted})
    assert response.status_code == 200
    assert response.content == client.get(path).content
