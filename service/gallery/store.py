"""What a gallery's store keeps and answers; `edge.py` and `server.py` meet it with Qdrant.

A picture is one point: its embedding, its visible regions (one vector each, in the map's order) and
what is told of it. Similarities are cosines, so stores may keep vectors at unit length.

Shape letters: N queries, V visible regions of a picture, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.contract import ModelInfo
from service.errors import GalleryError
from service.preprocess import Fit

FORMAT = 1
"""Version of what a store holds."""

EMBEDDING, REGIONS = "embedding", "regions"
"""Names of a point's vectors."""

NAME = "name"
"""Name of the part of `About` that may change."""

THUMBNAIL = "thumbnail"
"""Name of the largest part of what is told of a picture, left out unless it is asked for."""

Floats = NDArray[np.float32]


class About(NamedTuple):
    """What is told of a picture.

    Attributes:
        name: What its owner calls it.
        width: Of the upright picture in pixels.
        height: Likewise.
        fit: What of it the model saw.
        sha256: Digest of its file.
    """

    name: str
    width: int
    height: int
    fit: Fit
    sha256: str


class Picture(NamedTuple):
    """A picture that is in the gallery, its id a UUID."""

    id: str
    about: About


class Found(NamedTuple):
    """A picture that a search found, and how similar it is."""

    picture: Picture
    score: float


class Entry(NamedTuple):
    """A picture to be put into the gallery.

    Attributes:
        picture: Its id and what is told of it.
        embedding: (C,).
        regions: (V, C).
        thumbnail: A small JPEG of it.
    """

    picture: Picture
    embedding: Floats
    regions: Floats
    thumbnail: bytes


@dataclass(frozen=True, kw_only=True)
class Passport:
    """Whose vectors a gallery holds: those of different weights or pixels cannot be compared."""

    model: str
    weights_sha256: str
    preprocess: dict[str, Any]
    dim: int
    format: int = FORMAT

    @classmethod
    def of(cls, info: ModelInfo) -> "Passport":
        """Give the passport of a gallery that a model fills."""
        preprocess = asdict(info.preprocess)
        lists = {name: list(v) if isinstance(v, tuple) else v for name, v in preprocess.items()}
        return cls(
            model=info.name, weights_sha256=info.weights_sha256, preprocess=lists, dim=info.dim
        )

    def check(self, found: object, place: str) -> None:
        """Refuse a gallery of another model, or of another version.

        Args:
            found: What the gallery holds as its passport, as JSON gives it.
            place: What the gallery is called in the refusal.

        Raises:
            GalleryError: if its vectors are not of this model.
        """
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise GalleryError(f"{place} is no gallery of this version; choose another place")
        same = ("weights_sha256", "preprocess", "dim")
        if any(found.get(name) != getattr(self, name) for name in same):
            theirs, ours = str(found.get("weights_sha256"))[:12], self.weights_sha256[:12]
            raise GalleryError(
                f"{place} was filled by model {found.get('model')} (weights {theirs}); served is "
                f"{self.model} (weights {ours}), whose vectors cannot be compared with those; "
                f"serve that model, or choose another place and index again"
            )


class Store(Protocol):
    """Keeps pictures. Its calls wait, and may be made from any thread.

    Each may raise `GalleryUnavailable` where the store is elsewhere.
    """

    def count(self) -> int:
        """Give how many pictures there are."""

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep pictures, in place of those of the same ids; on return they outlast a kill."""

    def rename(self, names: Mapping[str, str]) -> None:
        """Call pictures something else, by id; ids that are not there are passed over."""

    def known(self, ids: Sequence[str]) -> list[Picture]:
        """Give those of the pictures that are there."""

    def vectors(self, ids: Sequence[str], name: str) -> dict[str, Floats]:
        """Give the vectors of a name, by picture: embeddings (C,), regions (V, C)."""

    def thumbnail(self, id: str) -> bytes | None:
        """Give a picture's thumbnail, None if there is no such picture."""

    def page(self, start: str | None, limit: int) -> tuple[list[Picture], str | None]:
        """Give pictures in the order of their ids, from one on, and where the next page starts."""

    def search(self, embeddings: Floats, limit: int, min_score: float | None) -> list[list[Found]]:
        """Give for each of (N, C) embeddings the most similar pictures, best first."""

    def search_regions(self, regions: Floats, limit: int) -> list[Found]:
        """Give the pictures that have all of (N, C) regions in them, best first.

        The score is the sum over the regions of the largest cosine to any region of the picture.
        """

    def delete(self, ids: Sequence[str]) -> None:
        """Forget pictures."""

    def clear(self) -> None:
        """Forget all pictures."""

    def close(self) -> None:
        """Let go of what is held; nothing may be asked after."""
