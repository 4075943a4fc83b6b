"""Arrays on the wire: JSON floats, base64, `.npy`.

FastAPI's own encoder takes 44 ms for 49 x 768 floats; orjson on the NumPy array takes under 1 ms
and writes the shortest digits that read back as the same float32. Feature arrays never pass
through a response model.
"""

import io
from typing import Any, Literal

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

Encoding = Literal["float", "base64", "base64_f16"]
"""float: JSON numbers; base64: little-endian float32; base64_f16: little-endian float16."""


def encode_array(array: Floats, encoding: Encoding) -> Floats | str:
    """Give an array as what `to_json` accepts: itself for JSON floats, else base64 text."""
    if encoding == "float":
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)
    dtype = "<f4" if encoding == "base64" else "<f2"
    return pybase64.b64encode_as_string(np.ascontiguousarray(array, dtype).data)


def to_json(content: Any) -> bytes:  # Any: whatever orjson can write
    """Write JSON; NumPy arrays become lists, NaN becomes null."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def to_npy(array: Floats, encoding: Encoding) -> bytes:
    """Write a `.npy` file, float16 where the encoding says so, else float32."""
    buffer = io.BytesIO()
    dtype = "<f2" if encoding == "base64_f16" else "<f4"
    np.save(buffer, np.ascontiguousarray(array, dtype), allow_pickle=False)
    return buffer.getvalue()


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide (..., C) vectors by their L2 norm; a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(norms, np.float32(1e-12))
    return unit
