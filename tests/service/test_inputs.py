import asyncio
import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from service.addresses import Address
from service.errors import ServiceError
from service.inputs import MAX_JSON_VALUES, read_inputs, read_options
from service.schemas import CorrespondOptions
from tests.service.pictures import jpeg, png, scene

A, B = jpeg(scene(seed=1)), png(scene(seed=2))
TWO_FILES = [("file", ("a.jpg", A)), ("file", ("b.png", B))]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def read(body: bytes, content_type: str, *, query=b"", max_images=64, names=None, headers=()):
    """Read a request that arrives in pieces of 1000 bytes."""
    pieces = [body[start : start + 1000] for start in range(0, len(body) or 1, 1000)]

    async def receive():
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    raw = [(b"content-type", content_type.encode("latin-1")), *headers]
    scope = {"type": "http", "method": "POST", "query_string": query, "headers": raw}
    return asyncio.run(read_inputs(Request(scope, receive), max_images=max_images, names=names))


def read_json(content, **options):
    return read(json.dumps(content).encode(), "application/json", **options)


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    """Write a form with boundary `b` of parts name, file name or None, content."""
    body = b""
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        body += b"--b\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n"
        body += content + b"\r\n"
    return body + b"--b--\r\n"


def read_form(*parts, **options):
    return read(form(*parts), "multipart/form-data; boundary=b", **options)


def refused(call, *args, **options) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        call(*args, **options)
    return caught.value


@pytest.mark.parametrize(
    "content_type",
    ["image/jpeg", "image/anything", "application/octet-stream", "IMAGE/JPEG; q=1", ""],
)
def test_a_raw_body_is_one_image(content_type):
    inputs = read(A, content_type, query=b"fit=pad")
    assert inputs == ([A], [""], {"fit": "pad"})


@pytest.mark.parametrize("data", [A, B, b"RIFF...."])
def test_what_curl_sends_without_naming_its_type_is_recognised(data):
    assert read(data, "application/x-www-form-urlencoded").images == [data]


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "", "video/mp4"])
def test_another_content_type_is_refused(content_type):
    error = refused(read, b"hello", content_type)
    assert (error.status, error.code) == (415, "unsupported_media_type")


def test_an_address_is_kept_for_who_fetches_it():
    (address,) = read_json({"images": [{"url": "http://169.254.169.254/"}]}).images
    assert isinstance(address, Address)
    assert address == "http://169.254.169.254/"


def test_json_of_very_many_values_is_refused_before_it_is_parsed():
    def body(count):
        return b'{"images": [' + b"{}," * count + b"{}]}"

    fitting = (MAX_JSON_VALUES - 3) // 2  # a brace and a comma each, and three more
    assert refused(read, body(fitting), "application/json").code == "batch_too_large"
    error = refused(read, body(fitting + 1), "application/json")
    assert error.code == "invalid_json"
    assert "values" in error.message


def test_base64_may_be_broken_into_lines():
    (image,), _, _ = read_json({"images": [{"base64": base64.encodebytes(A).decode()}]})
    assert image == A


def test_json_images_come_in_order_in_both_forms():
    inputs = read_json(
        {
            "images": [{"base64": text(A)}, {"data_uri": "data:image/png;base64," + text(B)}],
            "fit": "stretch",
        }
    )
    assert inputs == ([A, B], ["", ""], {"fit": "stretch"})


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ({"base64": "!!!!"}, "invalid_base64"),
        ({"base64": "AAA"}, "invalid_base64"),
        ({"base64": "AA=!="}, "invalid_base64"),
        ({"base64": "ÄÖÜ="}, "invalid_base64"),
        ({"base64": ""}, "undecodable_image"),
        ({"data_uri": "AAAA"}, "invalid_base64"),
        ({"data_uri": "data:text/html;base64,AAAA"}, "invalid_base64"),
        ({"data_uri": "data:image/png,AAAA"}, "invalid_base64"),
        ({"url": None}, "invalid_request"),
        ({"base64": None}, "invalid_request"),
        ({"base64": 3}, "invalid_request"),
        ({"bytes": "AAAA"}, "invalid_request"),
        ({"base64": "AAAA", "url": "x"}, "invalid_request"),
        ({}, "invalid_request"),
        ("AAAA", "invalid_request"),
        (None, "invalid_request"),
        ([["base64", "AAAA"]], "invalid_request"),
    ],
)
def test_what_is_wrong_with_one_json_image_concerns_it_alone(source, code):
    good, bad = read_json({"images": [{"base64": text(A)}, source]}).images
    assert good == A
    assert isinstance(bad, ServiceError)
    assert bad.code == code


@pytest.mark.parametrize(
    "body",
    [
        *[b"", b"{", b"\xff", b"[]", b"3", b'"x"', b"null", b'{"x": NaN}', b'{"x": 1e999}'],
        *[b'{"x": "\\ud800"}', b"[" * 50_000, b'{"a":' * 50_000],
    ],
    ids=lambda body: body[:12].decode("latin-1"),
)
def test_what_is_no_json_object_is_invalid_json(body):
    error = refused(read, body, "application/json")
    assert (error.status, error.code) == (400, "invalid_json")
    assert len(error.message) < 200


@pytest.mark.parametrize("content", [{}, {"images": {}}, {"images": "x"}, {"images": None}])
def test_json_without_a_list_of_images_is_refused(content):
    assert refused(read_json, content).field == "images"


def test_no_image_is_refused():
    assert refused(read_json, {"images": []}).message == "no image; expected at least one"
    assert refused(read_form, ("fit", None, b"pad")).code == "invalid_request"


def test_as_many_images_as_the_limit_pass_and_one_more_is_refused():
    for call, one in (
        (read_json, lambda n: [{"images": [{"base64": text(A)}] * n}]),
        (read_form, lambda n: [("file", "a.jpg", A)] * n),
    ):
        assert len(call(*one(3), max_images=3).images) == 3
        for too_many in (4, 5, 30):
            error = refused(call, *one(too_many), max_images=3)
            assert (error.status, error.code, error.limit) == (413, "batch_too_large", 3)


def test_file_parts_are_images_in_order_and_the_others_options():
    inputs = read_form(("any", "a.jpg", A), ("fit", None, b"pad"), ("name", "b.png", B))
    assert inputs == ([A, B], ["a.jpg", "b.png"], {"fit": "pad"})


def test_a_part_of_a_megabyte_stays_in_memory():
    large = np.random.default_rng(0).bytes(1_500_000)
    assert read_form(("file", "a", large)).images == [large]


def test_a_pair_is_taken_by_name_from_a_form_in_any_order():
    inputs = read_form(("target", "b", B), ("source", "a", A), names=("source", "target"))
    assert inputs.images == [A, B]


def test_a_pair_with_other_names_is_taken_in_order():
    inputs = read_form(("x", "b", B), ("y", "a", A), names=("source", "target"))
    assert inputs.images == [B, A]


def test_a_pair_is_taken_by_name_from_json():
    content = {"target": {"base64": text(B)}, "source": {"base64": text(A)}, "top_k": 3}
    assert read_json(content, names=("source", "target")) == ([A, B], ["", ""], {"top_k": 3})


@pytest.mark.parametrize("missing", ["source", "target"])
def test_a_pair_that_is_not_whole_is_refused(missing):
    content = {name: {"base64": text(A)} for name in ("source", "target") if name != missing}
    assert refused(read_json, content, names=("source", "target")).field == missing


def test_an_option_given_twice_is_refused():
    error = refused(read_json, {"images": [{"base64": text(A)}], "fit": "pad"}, query=b"fit=crop")
    assert (error.status, error.field) == (422, "fit")
    error = refused(read_form, ("file", "a", A), ("fit", None, b"pad"), query=b"fit=pad")
    assert (error.status, error.field) == (422, "fit")


def test_an_option_given_twice_in_the_same_place_is_refused():
    assert refused(read, A, "image/jpeg", query=b"fit=crop&fit=pad").field == "fit"
    parts = [("file", "a", A), ("fit", None, b"pad"), ("fit", None, b"crop")]
    assert refused(read_form, *parts).field == "fit"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data"),
        (b"garbage", "multipart/form-data; boundary=b"),
        (form(("file", "a", A)), "multipart/form-data; boundary=other"),
        (b"--b\r\nX: y\r\n\r\nz\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        (form(("file", "a", A)), "multipart/form-data; boundary=b; charset=undefined"),
        (form(("fit", None, b"x" * 70_000)), "multipart/form-data; boundary=b"),
        (form(*[(f"f{n}", None, b"x") for n in range(40)]), "multipart/form-data; boundary=b"),
    ],
    ids=["no boundary", "garbage", "boundary", "no name", "charset", "field", "fields"],
)
def test_what_is_no_form_is_invalid_multipart(body, content_type):
    error = refused(read, body, content_type)
    assert (error.status, error.code) == (400, "invalid_multipart")
    assert len(error.message) < 200


@pytest.mark.parametrize("length", [3, 4, 10, 60, 200])
def test_a_form_that_is_cut_is_refused_not_answered_in_part(length):
    body = form(("file", "a", A), ("file", "b", B))[:-length]
    error = refused(read, body, "multipart/form-data; boundary=b")
    assert (error.status, error.code) == (400, "invalid_multipart")
    assert "its last boundary is missing" in error.message


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_damaged_form_is_read_or_refused(data):
    body = bytearray(form(("file", "a", b"abc"), ("fit", None, b"pad"), ("é", None, b"x")))
    places = st.integers(0, len(body) - 1)
    for position, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        body[position] = value
    charset = data.draw(st.sampled_from(["utf-8", "utf-7", "unicode_escape", "idna", "hex", "x"]))
    outcome(read, bytes(body), f"multipart/form-data; boundary=b; charset={charset}")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["images", "fit", "points", "x"]), JSON))
@settings(max_examples=150, deadline=None)
def test_any_json_object_is_read_or_refused(content):
    outcome(lambda: read_options(CorrespondOptions, read_json(content).fields))


def outcome(call, *args) -> None:
    """Call; anything but an answer or a refusal of the client's fault comes out as raised."""
    try:
        call(*args)
    except ServiceError as error:
        if error.status >= 500:
            raise
