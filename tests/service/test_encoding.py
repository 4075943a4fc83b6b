import base64
import io

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from service.encoding import encode_array, normalize, to_json, to_npy

FLOATS = arrays(
    np.float32, array_shapes(max_dims=3, max_side=5), elements=st.floats(-1e3, 1e3, width=32)
)


@given(FLOATS)
def test_json_floats_read_back_as_the_same_float32(array):
    read = np.array(orjson.loads(to_json({"x": encode_array(array, "float")}))["x"], np.float32)
    np.testing.assert_array_equal(read, array)


@given(FLOATS)
def test_base64_holds_the_same_floats_little_endian(array):
    data = base64.b64decode(encode_array(array, "base64"), validate=True)
    np.testing.assert_array_equal(np.frombuffer(data, "<f4").reshape(array.shape), array)


@given(FLOATS)
def test_base64_f16_holds_the_nearest_float16(array):
    data = base64.b64decode(encode_array(array, "base64_f16"), validate=True)
    np.testing.assert_array_equal(np.frombuffer(data, "<f2"), array.ravel().astype(np.float16))


def test_base64_by_hand():
    assert encode_array(np.array([1.0], np.float32), "base64") == "AACAPw=="
    assert encode_array(np.array([1.0], np.float32), "base64_f16") == "ADw="


@pytest.mark.parametrize("encoding", ["float", "base64", "base64_f16"])
def test_a_cut_out_column_is_written_as_its_values(encoding):
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    strided, packed = table[:, 1], table[:, 1].copy()
    assert to_json(encode_array(strided, encoding)) == to_json(encode_array(packed, encoding))


def test_json_has_no_nan():
    assert to_json({"x": np.array([np.nan, np.inf, 1.5], np.float32)}) == b'{"x":[null,null,1.5]}'


@pytest.mark.parametrize(
    ("encoding", "dtype"), [("float", "<f4"), ("base64", "<f4"), ("base64_f16", "<f2")]
)
def test_npy_reads_back(encoding, dtype):
    array = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    read = np.load(io.BytesIO(to_npy(array, encoding)), allow_pickle=False)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array.astype(dtype))


def test_normalized_vectors_have_length_one_and_zero_stays_zero():
    vectors = np.array([[3, 4], [0, 0], [1e-20, 0], [-5, 0]], np.float32)
    np.testing.assert_allclose(normalize(vectors), [[0.6, 0.8], [0, 0], [0, 0], [-1, 0]], atol=1e-7)
    assert normalize(vectors).dtype == np.float32
