"""What a client sends and how it reads the answers: no connection here, only data.

Pictures travel as files of a form and arrays come back as base64 of little-endian float32, so that
nothing is rounded and one bad picture costs no other its answer.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray
from PIL import Image, ImageOps

Picture = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A path, a file's bytes, a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8."""

Array = NDArray[np.float32]
Fields = Mapping[str, object]
Fit = Literal["crop", "pad", "stretch"]
EmbedOutput = Literal["embedding", "last_blocks"]
Head = int | Literal["mean", "all"]
Point = tuple[float, float]

MAX_BATCH_BYTES = 8_000_000
"""Bytes of pictures sent in one call, unless a single one has more; services take 20 MB or more."""

OF_A_PICTURE = frozenset(
    ("body_too_large", "image_too_large", "unsupported_image_format", "undecodable_image")
)
"""Codes of refusals that are a picture's own fault when it was sent alone."""

PNG_MODES = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))

NO_COLOURS = frozenset(("F", "I"))
"""Modes of Pillow whose numbers may mean anything."""

WITH_ALPHA = {"RGBa": "RGBA", "PA": "RGBA"}
"""What modes that PNG lacks become, so that their alpha is kept; others become RGB."""

ADDRESS = re.compile(r"[a-z]{2,}://|data:", re.IGNORECASE)


class Refused(Exception):
    """A refusal of the service, of a call or of one picture in it.

    Attributes:
        code: What is wrong, one of the codes in `docs/api.md`; `unreadable_file` for a path
            that could not be read here.
        status: The HTTP status of the call, None where only a picture of it was refused.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.status = status


class Call(NamedTuple):
    """One call: where it goes, its pictures by the names of their form parts, its options."""

    path: str
    files: Sequence[tuple[str, bytes]]
    fields: Fields


class Regions(NamedTuple):
    """A picture's regions, row by row.

    Attributes:
        features: (L, C) float32.
        boxes: (L, 4) left, top, right, bottom in pixels of the picture.
        grid: Rows and columns; their product is L.
    """

    features: Array
    boxes: NDArray[np.float64]
    grid: tuple[int, int]


class Matches(NamedTuple):
    """N matches from one picture to another.

    Attributes:
        query: (N,) index of the region or of the asked point.
        source: (N, 2) x, y in pixels of the source.
        target: (N, 2) x, y in pixels of the target.
        score: (N,) cosine.
        mutual: (N,) whether the match leads back.
    """

    query: NDArray[np.intp]
    source: Array
    target: Array
    score: Array
    mutual: NDArray[np.bool_]


def as_file(picture: Picture) -> bytes:
    """Give a picture as the bytes of an image file; what is not one yet becomes a PNG, upright.

    Raises:
        OSError: if a path cannot be read, or is an address.
        TypeError: if it is nothing that a picture can be.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str) and ADDRESS.match(picture):
        raise OSError("a picture is an address; expected a path, or the file's bytes")
    if isinstance(picture, str | Path):
        return Path(picture).read_bytes()
    return _as_png(_as_image(picture))


def batches(pictures: Iterable[Picture], batch_size: int) -> Iterator[list[bytes | Refused]]:
    """Group pictures into batches of at most so many and at most `MAX_BATCH_BYTES`, lazily.

    A path that cannot be read is a `Refused` in its place.

    Raises:
        TypeError: if it is one picture instead of several.
    """
    if _is_one(pictures):
        raise TypeError(f"pictures is one {type(pictures).__name__}, expected a list of pictures")
    return _group(pictures, batch_size)


def embed_fields(
    output: EmbedOutput, normalize: bool, dimensions: int | None, fit: Fit
) -> dict[str, object]:
    """Write the options of an embedding."""
    fields: dict[str, object] = {"output": output, "normalize": normalize, "fit": fit}
    fields["encoding_format"] = "base64"
    return fields if dimensions is None else fields | {"dimensions": dimensions}


def embed_call(batch: Sequence[bytes | Refused], fields: Fields) -> Call | None:
    """Ask for the vectors of a batch's files; None if it has none."""
    files = [("file", file) for file in batch if isinstance(file, bytes)]
    return Call("/embed", files, fields) if files else None


def read_embeddings(
    batch: Sequence[bytes | Refused], answer: Mapping[str, Any]
) -> list[Array | Refused]:
    """Give for each picture of a batch its vector (C,), or why there is none."""
    reasons = {error["index"]: error for error in answer["errors"]}
    results: list[Array | Refused] = []
    texts = enumerate(answer["embeddings"])
    for file in batch:
        if isinstance(file, Refused):
            results.append(file)
            continue
        index, text = next(texts)
        if text is None:
            results.append(Refused(reasons[index]["code"], reasons[index]["message"]))
        else:
            results.append(_floats(text))
    return results


def stack(results: Iterable[Array | Refused]) -> Array:
    """Stack vectors as (N, C), (0, 0) if there are none.

    Raises:
        Refused: the first that is none.
    """
    vectors = []
    for result in results:
        if isinstance(result, Refused):
            raise result
        vectors.append(result)
    return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)


def read_regions(answer: Mapping[str, Any]) -> Regions:
    """Read the answer of `/regions` for one picture."""
    (image,) = answer["images"]
    boxes = np.array(image["boxes"], np.float64)
    rows, columns = answer["grid"]
    return Regions(_floats(image["regions"]).reshape(len(boxes), -1), boxes, (rows, columns))


def read_matches(answer: Mapping[str, Any]) -> Matches:
    """Read the answer of `/correspond`."""
    table = _floats(answer["matches"]).reshape(-1, 7)
    return Matches(
        table[:, 0].astype(np.intp), table[:, 1:3], table[:, 3:5], table[:, 5], table[:, 6] > 0
    )


def read_attention(answer: Mapping[str, Any]) -> Array:
    """Read the answer of `/attention` for one picture: (heads, rows, columns)."""
    (image,) = answer["images"]
    return _floats(image["attention"]).reshape(-1, *answer["grid"])


def read_refusal(status: int, body: bytes) -> Refused:
    """Read a refusal, also one that another server on the way wrote."""
    try:
        error = orjson.loads(body)["error"]
        return Refused(error["code"], error["message"], status)
    except (ValueError, LookupError, TypeError):
        return Refused("unknown", f"answer of status {status} that is not the service's", status)


def _is_one(pictures: object) -> bool:
    """Tell whether this is a picture itself; letters, bytes and rows of pixels are none."""
    if isinstance(pictures, np.ndarray):
        return pictures.ndim < 4 and pictures.dtype != object
    return isinstance(pictures, str | Path | bytes | Image.Image)


def _group(pictures: Iterable[Picture], batch_size: int) -> Iterator[list[bytes | Refused]]:
    """Group pictures; see `batches`."""
    batch: list[bytes | Refused] = []
    num_bytes = 0
    for picture in pictures:
        file = _read(picture)
        size = 0 if isinstance(file, Refused) else len(file)
        if batch and num_bytes + size > MAX_BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
        batch.append(file)
        num_bytes += size
        if len(batch) == batch_size:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _read(picture: Picture) -> bytes | Refused:
    """Give a picture's file, or why it cannot be read."""
    try:
        return as_file(picture)
    except (OSError, ValueError) as error:  # ValueError: a name or a picture that can be none
        return Refused("unreadable_file", str(error))


def _as_image(picture: object) -> Image.Image:
    """Give an array as a picture, and a picture as it is.

    Raises:
        TypeError: if it is neither, or its numbers may mean anything.
    """
    if isinstance(picture, np.ndarray):
        is_picture = picture.ndim >= 2 and picture.shape[2:] in ((), (3,), (4,))
        if picture.dtype != np.uint8 or not is_picture or not picture.size:
            raise TypeError(
                f"array is {picture.dtype} {picture.shape}, expected uint8 (H, W), (H, W, 3) or "
                "(H, W, 4)"
            )
        return Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise TypeError(f"picture is a {type(picture).__name__}, expected path, bytes, PIL, array")
    if picture.mode in NO_COLOURS:
        raise TypeError(f"picture is of mode {picture.mode}, whose scale is unknown; convert it")
    return picture


def _as_png(picture: Image.Image) -> bytes:
    """Write a picture as a PNG, upright."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode not in PNG_MODES:
        upright = upright.convert(WITH_ALPHA.get(upright.mode, "RGB"))
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _floats(text: str) -> Array:
    """Read base64 of little-endian float32."""
    return np.frombuffer(pybase64.b64decode(text, validate=True), "<f4").astype(np.float32)
