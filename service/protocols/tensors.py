"""The Open Inference Protocol's infer call: a JSON header, perhaps followed by raw tensors.

A pure function of bytes, so that it can be tested with any bytes at all. Every length that a
client states is held against what is really there before it is used, and nothing is copied but
the pictures themselves, which are no larger than the body.
"""

import itertools
import struct
from typing import Any, NamedTuple

import pybase64
from pydantic import BaseModel, Field

from service.errors import BatchTooLarge, InvalidRequest
from service.inputs import read_object, read_options
from service.preprocess import Fit

INPUT = "IMAGE"
"""The input tensor: an image file in each element."""

MAX_TENSORS = 16
"""More inputs or outputs than any call has a use for."""

LENGTH = struct.Struct("<I")
"""What stands before each element of a binary BYTES tensor."""


class _TensorParameters(BaseModel):
    """Of an input: how many bytes after the header are its own; of an output: its form."""

    binary_data_size: int | None = Field(default=None, ge=0, strict=True)
    binary_data: bool | None = Field(default=None, strict=True)


class _InputTensor(BaseModel):
    """An input tensor of the header."""

    name: str
    datatype: str
    shape: list[int] = Field(min_length=1, max_length=2, fail_fast=True)
    data: list[Any] | None = None  # Any: elements are looked at one by one, after they are counted
    parameters: _TensorParameters = _TensorParameters()


class _WantedTensor(BaseModel):
    """An output tensor that the header asks for."""

    name: str
    parameters: _TensorParameters = _TensorParameters()


class _CallParameters(BaseModel):
    """Parameters of a whole call; what else clients put here (priorities, say) is ignored."""

    binary_data_output: bool = False
    fit: Fit = "crop"
    normalize: bool = True


class _Header(BaseModel):
    """The JSON of an infer call."""

    id: str = Field(default="", max_length=256)
    inputs: list[_InputTensor] = Field(min_length=1, max_length=MAX_TENSORS, fail_fast=True)
    outputs: list[_WantedTensor] = Field(default=[], max_length=MAX_TENSORS, fail_fast=True)
    parameters: _CallParameters = _CallParameters()


class InferCall(NamedTuple):
    """What an infer call asks for.

    Attributes:
        id: The client's own name for the call, given back to it.
        images: The image files.
        outputs: Names of the outputs that are wanted and whether each is wanted binary; empty asks
            for all.
        is_binary: Whether outputs that say nothing of it are wanted binary.
        fit: What of the picture the model sees.
        normalize: Whether embeddings and regions are divided by their L2 norm.
    """

    id: str
    images: list[bytes]
    outputs: dict[str, bool]
    is_binary: bool
    fit: Fit
    normalize: bool


def read_call(body: bytes, header_length: str | None, max_images: int) -> InferCall:
    """Read an infer call.

    Args:
        body: The request's body.
        header_length: The header `Inference-Header-Content-Length`; None if the body is JSON alone.
        max_images: How many images there may be.

    Raises:
        InvalidJson: if the header is no JSON object.
        InvalidRequest: if anything in it contradicts the protocol or the body.
        BatchTooLarge: if there are more images than that.
    """
    text, tail = _split(body, header_length)
    header = read_options(_Header, read_object(text))
    if [tensor.name for tensor in header.inputs] != [INPUT]:
        raise InvalidRequest(f"expected one input, {INPUT}", field="inputs")
    images = _read_images(header.inputs[0], tail, max_images)
    is_binary = header.parameters.binary_data_output
    outputs = {
        wanted.name: is_binary
        if wanted.parameters.binary_data is None
        else wanted.parameters.binary_data
        for wanted in header.outputs
    }
    return InferCall(
        header.id, images, outputs, is_binary, header.parameters.fit, header.parameters.normalize
    )


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """Part the JSON header from the raw tensors behind it."""
    if header_length is None:
        return body, b""
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) <= 18):
        raise InvalidRequest("Inference-Header-Content-Length is no number of bytes")
    length = int(header_length)
    if length > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes"
        )
    return body[:length], body[length:]


def _read_images(tensor: _InputTensor, tail: bytes, max_images: int) -> list[bytes]:
    """Take the image files of the input tensor."""
    if tensor.datatype != "BYTES":
        raise InvalidRequest(f"{INPUT} is of datatype BYTES: an image file in each element")
    count = _count(tensor.shape, max_images)
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise InvalidRequest(f"{INPUT} has either data or parameters.binary_data_size")
    if size is not None:
        if size != len(tail):
            raise InvalidRequest(
                f"binary_data_size is {size}, but {len(tail)} bytes follow the header"
            )
        return split_elements(tail, count)
    if tail:
        raise InvalidRequest(f"{len(tail)} bytes follow the header, and no input claims them")
    return _decode_elements(tensor.data or [], count)


def _count(shape: list[int], max_images: int) -> int:
    """Give the number of images: the shape is [N], or [N, 1] from clients that batch."""
    if shape[0] < 1 or shape[1:] not in ([], [1]):
        raise InvalidRequest(f"{INPUT} has the shape [N] or [N, 1], N at least 1")
    if shape[0] > max_images:
        raise BatchTooLarge(f"at most {max_images} images a request are accepted", limit=max_images)
    return shape[0]


def split_elements(data: bytes, count: int) -> list[bytes]:
    """Split a binary BYTES tensor: before each element its length, uint32 little-endian.

    Raises:
        InvalidRequest: if the lengths do not add up to the data.
    """
    elements = []
    start = 0
    for index in range(count):
        end = start + LENGTH.size
        if end > len(data):
            raise InvalidRequest(f"the data end before element {index}", field=INPUT)
        start, end = end, end + LENGTH.unpack_from(data, start)[0]
        if end > len(data):
            raise InvalidRequest(f"element {index} is longer than the data", field=INPUT)
        elements.append(data[start:end])
        start = end
    if start != len(data):
        raise InvalidRequest(f"{len(data) - start} bytes follow the last element", field=INPUT)
    return elements


def _decode_elements(data: list[Any], count: int) -> list[bytes]:
    """Take elements from JSON, where they are base64, in one list or, as the shape, in lists."""
    if all(isinstance(element, list) for element in data):
        data = list(itertools.chain.from_iterable(data))
    if len(data) != count:
        raise InvalidRequest(f"the shape says {count} elements, data has {len(data)}", field=INPUT)
    return [_decode_element(element, index) for index, element in enumerate(data)]


def _decode_element(element: object, index: int) -> bytes:
    """Take one element from JSON."""
    try:
        if isinstance(element, str):
            return pybase64.b64decode(element, validate=True)
    except ValueError:  # binascii.Error and non-ASCII text
        pass
    raise InvalidRequest("an element of BYTES in JSON is an image file in base64", index=index)
