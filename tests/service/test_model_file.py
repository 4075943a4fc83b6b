import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ModelError
from service.model_file import read_model_info
from tests.service.tiny_model import INFO, write_tiny_model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def test_passport_is_found_in_an_onnx_file(model_path):
    assert read_model_info(model_path) == INFO


def test_passport_is_found_behind_any_kind_of_protobuf_field(model_path, path):
    varint, fixed64, fixed32 = b"\x28\x96\x01", b"\x31" + bytes(8), b"\x35" + bytes(4)
    path.write_bytes(varint + fixed64 + fixed32 + model_path.read_bytes())
    assert read_model_info(path) == INFO


def test_missing_file_is_refused(path):
    with pytest.raises(ModelError, match=r"is not there; write one with trainer\.export_onnx"):
        read_model_info(path)


def test_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is not there"):
        read_model_info(tmp_path)


def test_file_without_passport_is_refused(path):
    write_tiny_model(path, passport=None)
    with pytest.raises(ModelError, match=r"has no metadata 'esvit'; export it again"):
        read_model_info(path)


def test_passport_of_another_format_is_refused(path):
    write_tiny_model(path, json.dumps(json.loads(INFO.to_json()) | {"format": 7}))
    with pytest.raises(ModelError, match="format 7, expected 1; export it again"):
        read_model_info(path)


def test_passport_that_is_no_text_is_refused(path):
    path.write_bytes(metadata_entry(b"\x0a\x05esvit\x12\x02\xff\xff"))
    with pytest.raises(ModelError, match="cannot be used"):
        read_model_info(path)


def test_a_file_cut_anywhere_is_refused(model_path, path):
    whole = model_path.read_bytes()
    for length in range(0, len(whole), 211):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="cannot be used"):
            read_model_info(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"a text file, nothing else",
        b"\xff" * 30,
        b"\x0b\x00",
    ],
)
def test_foreign_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be used"):
        read_model_info(path)


@pytest.mark.parametrize("length", [2**40, 2**62, 2**69])
def test_a_length_beyond_the_file_is_refused_before_memory_is_asked_for(path, length):
    path.write_bytes(metadata_entry(b"\x0a" + varint(length)))
    with pytest.raises(ModelError, match="is cut or no ONNX file"):
        read_model_info(path)


@given(st.binary(max_size=60), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_with_a_model_error(tmp_path_factory, content, in_entry):
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(metadata_entry(content) if in_entry else content)
    with pytest.raises(ModelError):
        read_model_info(path)


def varint(value: int) -> bytes:
    """Write a base-128 number."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def metadata_entry(entry: bytes) -> bytes:
    """Give a `metadata_props` field of under 128 bytes."""
    return bytes([14 << 3 | 2, len(entry)]) + entry
