"""A request's body to images and options: raw, multipart or JSON, the same on every endpoint."""

import re
from typing import Any, NamedTuple, TypeVar

import orjson
import pybase64
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.addresses import Address, Source
from service.errors import (
    BatchTooLarge,
    InvalidBase64,
    InvalidJson,
    InvalidMultipart,
    InvalidRequest,
    UndecodableImage,
    UnsupportedMediaType,
)

Fields = dict[str, Any]
OptionsT = TypeVar("OptionsT", bound=BaseModel)

MAX_JSON_VALUES = 50_000
"""Many more than any call has, counted before they are parsed: of `{},` Python makes 24 times its
size."""

MAX_FIELDS = 32
"""More options than any endpoint has."""

MAX_FIELD_BYTES = 65_536
"""Bytes of one form field; a thousand points are half of it."""

DATA_URI = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)

IMAGE_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")
"""What a body begins with that curl sent without naming its type."""

MAX_PROBLEM_LENGTH = 200

MAX_FILE_NAME = 300
"""Characters of a file's name that are kept."""


class Inputs(NamedTuple):
    """What a request holds.

    Attributes:
        images: For each image its file's bytes, its address, or why there is neither.
        file_names: What each one's file is called in a form, "" where nothing is said.
        fields: Options by name, not yet validated.
    """

    images: list[Source]
    file_names: list[str]
    fields: Fields


class _File(NamedTuple):
    """A file part of a form: the part's name, and the file's."""

    part: str
    file_name: str
    data: bytes


async def read_inputs(
    request: Request, *, max_images: int, names: tuple[str, ...] | None = None
) -> Inputs:
    """Read images and options from a request.

    Args:
        request: The request, its body not yet read.
        max_images: How many images it may hold.
        names: JSON fields and form parts that hold one image each; None takes the list `images`,
            and every file part.

    Raises:
        ServiceError: if the body is not one of the three forms, or holds no image or too many.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields = _once_each(request.query_params.multi_items())
    if kind == "multipart/form-data":
        inputs = await _read_multipart(request, max_images, names)
    else:
        body = await read_body(request)
        if kind == "application/json":
            inputs = _read_json(body, max_images, names)
        else:
            inputs = Inputs([_read_raw(body, kind)], [""], {})
    if twice := fields.keys() & inputs.fields.keys():
        raise _given_twice(sorted(twice)[0])
    return inputs._replace(fields=fields | inputs.fields)


async def read_fields(request: Request) -> Fields:
    """Read the options of a call that brings no image: a JSON object, the query, or both.

    Raises:
        ServiceError: if the body is something else, or an option is given twice.
    """
    fields = _once_each(request.query_params.multi_items())
    body = await read_body(request)
    if not body:
        return fields
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType("send a JSON object with Content-Type: application/json")
    more = read_object(body)
    if twice := fields.keys() & more.keys():
        raise _given_twice(sorted(twice)[0])
    return fields | more


async def read_body(request: Request) -> bytes:
    """Read a whole body, whatever its type."""
    return b"".join([chunk async for chunk in request.stream()])


def read_object(body: bytes) -> Fields:
    """Read a JSON object.

    Raises:
        InvalidJson: if the body is none.
    """
    if len(body) > MAX_JSON_VALUES:  # else it cannot have so many
        num_values = sum(body.count(mark) for mark in (b",", b"{", b"["))
        if num_values > MAX_JSON_VALUES:
            raise InvalidJson(f"the body has more than {MAX_JSON_VALUES} values or commas")
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"the body is not JSON: {str(error)[:100]}") from error
    if not isinstance(fields, dict):
        raise InvalidJson("the body is not a JSON object")
    return fields


def read_options(model: type[OptionsT], fields: Fields) -> OptionsT:
    """Validate options.

    Raises:
        InvalidRequest: naming the first field at fault; nothing of its value is echoed.
    """
    if len(fields) > MAX_FIELDS:
        raise InvalidRequest(f"{len(fields)} fields; at most {MAX_FIELDS} are accepted")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        parts = problem["loc"]  # an option, and inside of it indices and pydantic's own words
        field = ".".join(str(p) for n, p in enumerate(parts) if n == 0 or isinstance(p, int))
        known = ", ".join(sorted(model.model_fields))
        message = problem["msg"][:MAX_PROBLEM_LENGTH]
        if problem["type"] == "extra_forbidden":
            message = f"unknown option; known are {known}"
        raise InvalidRequest(message, field=_shown(field)) from error


def _read_raw(body: bytes, kind: str) -> bytes:
    """Take a body that is an image file."""
    if kind.startswith("image/") or kind == "application/octet-stream":
        return body
    if kind in ("", "application/x-www-form-urlencoded") and body.startswith(IMAGE_BEGINNINGS):
        return body
    raise UnsupportedMediaType(
        "send an image with Content-Type: image/jpeg (or png, webp), multipart/form-data with "
        "files, or application/json"
    )


async def _read_multipart(
    request: Request, max_images: int, names: tuple[str, ...] | None
) -> Inputs:
    """Take the file parts of a form as images and the others as options."""
    parser = _MemoryParser(
        request.headers,
        request.stream(),
        max_files=max_images + 1,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        parts = (await parser.parse()).multi_items()
        files = [
            _File(name, _file_name(part.filename), await part.read())
            for name, part in parts
            if isinstance(part, UploadFile)
        ]
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise _too_many(max_images) from error
        raise InvalidMultipart(f"not a readable form: {error.message[:120]}") from error
    except UnicodeError as error:  # a charset that is none
        raise InvalidMultipart("not a readable form: its charset cannot be read") from error
    finally:
        parser.close()
    if not parser.has_ended:  # the part that is cut is in none of the lists
        raise InvalidMultipart("the form is cut: its last boundary is missing")
    fields = _once_each([(name, part) for name, part in parts if isinstance(part, str)])
    if names is not None:
        files = _in_order(files, names)
    _check_count(len(files), max_images)
    return Inputs([file.data for file in files], [file.file_name for file in files], fields)


def _in_order(files: list[_File], names: tuple[str, ...]) -> list[_File]:
    """Sort the files of a form by the names that are expected; other names keep their order."""
    if {file.part for file in files} == set(names):
        return sorted(files, key=lambda file: names.index(file.part))
    return files


def _file_name(given: str | None) -> str:
    """Give the last part of a file's name as a form says it, short and of printable characters."""
    name = re.split(r"[/\\]", given or "")[-1]
    return "".join(letter for letter in name if letter.isprintable())[:MAX_FILE_NAME]


def _read_json(body: bytes, max_images: int, names: tuple[str, ...] | None) -> Inputs:
    """Take images and options from a JSON object."""
    fields = read_object(body)
    if names is None:
        sources = fields.pop("images", None)
        if not isinstance(sources, list):
            raise InvalidRequest('expected a list of images, {"images": [...]}', field="images")
    else:
        sources = [fields.pop(name, None) for name in names]
        if None in sources:
            missing = names[sources.index(None)]
            raise InvalidRequest("expected an image", field=missing)
    return Inputs(read_sources(sources, max_images), [""] * len(sources), fields)


def read_sources(sources: list[Any], max_images: int) -> list[Source]:
    """Take images from a JSON list; what is wrong with one of them stands in its place.

    Args:
        sources: For each image `{"base64": ...}`, `{"data_uri": ...}` or `{"url": ...}`.
        max_images: How many there may be.

    Raises:
        ServiceError: if there is no image or too many.
    """
    _check_count(len(sources), max_images)
    return [_read_source(source) for source in sources]


def _read_source(source: object) -> Source:
    """Take one image of a JSON body; what is wrong with it concerns this image alone."""
    if not isinstance(source, dict) or len(source) != 1:
        return InvalidRequest('an image is {"base64": ...}, {"data_uri": ...} or {"url": ...}')
    ((form, text),) = source.items()
    if form not in ("base64", "data_uri", "url") or not isinstance(text, str):
        return InvalidRequest('an image is {"base64": ...}, {"data_uri": ...} or {"url": ...}')
    if form == "url":
        return Address(text)
    if form == "data_uri":
        prefix = DATA_URI.match(text)
        if prefix is None:
            return InvalidBase64("a data URI is data:image/...;base64,...")
        text = text[prefix.end() :]
    try:
        # Many encoders break lines; splitting costs nothing where there are none.
        return pybase64.b64decode("".join(text.split()), validate=True) or UndecodableImage(
            "image is empty"
        )
    except ValueError:  # binascii.Error and non-ASCII text
        return InvalidBase64("not base64")


def _once_each(pairs: list[tuple[str, str]]) -> Fields:
    """Take options by name, none of them twice."""
    fields: Fields = {}
    for name, value in pairs:
        if name in fields:
            raise _given_twice(name)
        fields[name] = value
    return fields


def _given_twice(name: str) -> InvalidRequest:
    """Say which option is given twice."""
    return InvalidRequest("an option is given twice", field=_shown(name))


def _check_count(count: int, max_images: int) -> None:
    """Refuse no images and too many."""
    if count == 0:
        raise InvalidRequest("no image; expected at least one")
    if count > max_images:
        raise _too_many(max_images)


def _too_many(max_images: int) -> BatchTooLarge:
    """Say how many images a request may hold."""
    return BatchTooLarge(f"at most {max_images} images a request are accepted", limit=max_images)


def _shown(name: str) -> str:
    """Give a field's name as an error may show it: short, and nothing but a name."""
    return name[:64] if re.fullmatch(r"[\w.\[\]-]+", name, re.ASCII) else "?"


class _MemoryParser(MultiPartParser):
    """Starlette's parser, writing nothing to disk: the body is bounded already."""

    spool_max_size = 0  # SpooledTemporaryFile: never roll over
    has_ended = False

    def on_end(self) -> None:
        """Note that the last boundary came."""
        self.has_ended = True

    def close(self) -> None:
        """Let go of the files, also of one that was cut."""
        for file in self._files_to_close_on_error:
            file.close()
