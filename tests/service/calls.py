"""Calls of the service in its three forms of input."""

import base64
import json
from collections.abc import Sequence

import httpx

Image = bytes
JSON_TEXT = "application/json"


def post_raw(client: httpx.Client, path: str, image: Image, accept="*/*", **options):
    """Send one image as the body, options in the query."""
    headers = {"content-type": "image/png", "accept": accept}
    query = {name: in_text(value) for name, value in options.items()}
    return client.post(path, content=image, params=query, headers=headers)


def post_form(client: httpx.Client, path: str, images: Sequence[Image], accept="*/*", **options):
    """Send images as files of a form, options as its fields."""
    names = ("source", "target") if path == "/correspond" else ("file",) * len(images)
    files = [(name, ("name", image)) for name, image in zip(names, images, strict=False)]
    fields = {name: in_text(value) for name, value in options.items()}
    return client.post(path, files=files, data=fields, headers={"accept": accept})


def post_json(client: httpx.Client, path: str, images: Sequence[Image], accept="*/*", **options):
    """Send images as base64 in JSON, options as its fields."""
    sources = [{"base64": base64.b64encode(image).decode()} for image in images]
    if path == "/correspond":
        body = dict(zip(("source", "target"), sources, strict=True))
    else:
        body = {"images": sources}
    return client.post(path, json=body | options, headers={"accept": accept})


def in_text(value: object) -> str:
    """Write an option as a query or a form holds it."""
    return value if isinstance(value, str) else json.dumps(value)


def post_many(client: httpx.Client, path: str, image: Image, count: int):
    """Send one image many times, as files of a form."""
    return client.post(path, files=[("file", ("name", image))] * count)


def refused(response: httpx.Response, status: int, code: str) -> dict:
    """Hold an answer against the shape of every refusal, and give its error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) < 16_000
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) <= {"code", "message", "field", "index", "limit", "request_id"}
    assert error["code"] == code
    assert error["message"]
    assert error["request_id"] == response.headers["x-request-id"]
    return error
