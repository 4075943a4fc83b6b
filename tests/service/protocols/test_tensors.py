"""The binary parser: whatever bytes and lengths come, images or a refusal."""

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ServiceError
from service.protocols.tensors import InferCall, read_call, split_elements

MAX_IMAGES = 4


def binary(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def header(tail: bytes = b"", **changes: object) -> dict:
    tensor = {
        "name": "IMAGE",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(tail)},
    }
    return {"inputs": [tensor | changes]}


def read(content: object, tail: bytes = b"") -> InferCall:
    text = json.dumps(content).encode()
    return read_call(text + tail, str(len(text)) if tail else None, MAX_IMAGES)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=MAX_IMAGES))
def test_binary_and_json_give_the_elements_that_were_sent(elements):
    tail = binary(*elements)
    call = read(header(tail, shape=[len(elements)]), tail)
    assert call.images == elements
    texts = [base64.b64encode(element).decode() for element in elements]
    flat = header(shape=[len(elements)], data=texts, parameters={})
    nested = header(shape=[len(elements), 1], data=[[text] for text in texts], parameters={})
    assert read(flat).images == read(nested).images == elements


def test_a_call_says_which_outputs_in_which_form_and_what_the_model_sees():
    tail = binary(b"a")
    outputs = [{"name": "REGIONS"}, {"name": "EMBEDDING", "parameters": {"binary_data": False}}]
    parameters = {"binary_data_output": True, "fit": "pad", "normalize": False, "priority": 3}
    content = header(tail) | {"id": "mine", "outputs": outputs, "parameters": parameters}
    assert read(content, tail) == InferCall(
        "mine", [b"a"], {"REGIONS": True, "EMBEDDING": False}, True, "pad", False
    )


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 1),
        (b"\1\0\0", 1),
        (b"\1\0\0\0", 1),
        (b"\xff\xff\xff\xffabc", 1),
        (binary(b"a"), 2),
        (binary(b"a", b"b"), 1),
        (binary(b"a") + b"x", 1),
    ],
)
def test_lengths_that_do_not_add_up_are_refused(data, count):
    with pytest.raises(ServiceError) as caught:
        split_elements(data, count)
    assert (caught.value.status, caught.value.field) == (422, "IMAGE")


GOOD = base64.b64encode(b"a").decode()
BAD_TENSORS = {
    "another name": {"name": "PIXELS"},
    "another type": {"datatype": "FP32"},
    "no shape": {"shape": []},
    "three axes": {"shape": [1, 1, 1]},
    "a second axis": {"shape": [1, 3]},
    "nothing": {"shape": [0]},
    "negative": {"shape": [-1]},
    "huge": {"shape": [2**62]},
    "no integer": {"shape": ["x"]},
    "both forms": {"data": [GOOD], "parameters": {"binary_data_size": 0}},
    "neither form": {"parameters": {}},
    "negative size": {"parameters": {"binary_data_size": -1}},
    "size beyond the body": {"parameters": {"binary_data_size": 10**12}},
    "size in text": {"parameters": {"binary_data_size": "5"}},
    "parameters no object": {"parameters": [1]},
    "too few": {"data": [], "parameters": {}},
    "too many": {"data": [GOOD, GOOD], "parameters": {}},
    "not base64": {"data": ["a picture"], "parameters": {}},
    "not ASCII": {"data": ["é"], "parameters": {}},
    "a number": {"data": [7], "parameters": {}},
    "mixed nesting": {"data": [[GOOD], GOOD], "shape": [2], "parameters": {}},
}


@pytest.mark.parametrize("changes", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_malformed_input_is_refused(changes):
    tail = b"" if "data" in changes else binary(b"a")
    with pytest.raises(ServiceError) as caught:
        read(header(tail, **changes), tail)
    assert 400 <= caught.value.status < 500


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"inputs": []},
        {"inputs": {}},
        {"inputs": [1]},
        {"inputs": [header()["inputs"][0]] * 2},
        {"inputs": [{}] * 100},
        header() | {"id": "x" * 300},
        header() | {"outputs": [{"name": "A"}] * 100},
        header() | {"parameters": {"fit": "squint"}},
    ],
)
def test_a_malformed_header_is_refused(content):
    with pytest.raises(ServiceError) as caught:
        read(content)
    assert 400 <= caught.value.status < 500


@pytest.mark.parametrize(
    "length", ["", "-1", "1e3", "x", "²", "9" * 40, str(10**12), " 5", "0", "3"]
)
def test_a_header_length_that_lies_is_refused(length):
    with pytest.raises(ServiceError) as caught:
        read_call(json.dumps(header()).encode(), length, MAX_IMAGES)
    assert 400 <= caught.value.status < 500


def test_bytes_that_no_input_claims_are_refused():
    with pytest.raises(ServiceError, match="no input claims them"):
        read(header(data=[GOOD], parameters={}), b"more")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(["name", "datatype", "shape", "data", "parameters"])


@given(st.dictionaries(KEYS, JSON), st.binary(max_size=30), st.integers(-5, 400))
def test_any_header_before_any_bytes_is_read_or_refused(changes, tail, shift):
    text = json.dumps(header(tail, **changes)).encode()
    try:
        call = read_call(text + tail, str(len(text) + shift), MAX_IMAGES)
    except ServiceError as error:
        assert 400 <= error.status < 500  # noqa: PT017  # either outcome is right
    else:
        assert 1 <= len(call.images) <= MAX_IMAGES


@given(st.binary(max_size=200), st.none() | st.text(max_size=6))
def test_any_bytes_at_all_are_refused(body, length):
    with pytest.raises(ServiceError) as caught:
        read_call(body, length, MAX_IMAGES)
    assert 400 <= caught.value.status < 500
