"""Pictures as Qdrant's points: the same payload in a folder and on a server."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pybase64

from service.gallery.store import EMBEDDING, REGIONS, THUMBNAIL, About, Entry, Floats, Picture

Payload = Mapping[str, Any]  # JSON


def to_vectors(entry: Entry) -> dict[str, Any]:
    """Give a picture's vectors by name, as lists."""
    return {EMBEDDING: entry.embedding.tolist(), REGIONS: entry.regions.tolist()}


def to_payload(entry: Entry) -> dict[str, Any]:
    """Give what is told of a picture as JSON."""
    return {
        **entry.picture.about._asdict(),
        THUMBNAIL: pybase64.b64encode_as_string(entry.thumbnail),
    }


def to_picture(id: object, payload: Payload | None) -> Picture:
    """Read a picture that a store gave."""
    assert payload is not None
    return Picture(str(id), About(**{name: payload[name] for name in About._fields}))


def to_thumbnail(payload: Payload | None) -> bytes:
    """Read the thumbnail of a picture that a store gave."""
    assert payload is not None
    return pybase64.b64decode(payload[THUMBNAIL])


def to_array(vector: object, name: str) -> Floats:
    """Read one of the vectors of a picture that a store gave."""
    assert isinstance(vector, dict)
    return np.asarray(vector[name], np.float32)
