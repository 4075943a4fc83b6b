"""What is found in a gallery: by a picture, by a part of one, or because two are nearly the same.

These calls wait for the store; `gallery.py` makes them in worker threads.

Shape letters: N queries, C channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from service.contract import ModelInfo, PreprocessSpec
from service.correspond import RegionMap
from service.errors import UnknownPicture
from service.gallery import parts
from service.gallery.parts import Box, PartMatch, Shown
from service.gallery.store import EMBEDDING, REGIONS, About, Floats, Found, Picture, Store
from service.preprocess import Fit, Geometry, place
from service.regions import is_visible
from service.tickets import Inferred

CANDIDATES = 4
"""So many times the pictures that are wanted are matched region by region, to rank them anew."""

LEAST_CANDIDATES = 50

MATCHED_AT_ONCE = 64
"""Pictures whose regions are in memory at once."""

MAX_NEAR = 100
"""Near pictures told of one."""


class PartFound(NamedTuple):
    """A picture that holds a part of another."""

    picture: Picture
    match: PartMatch


class PartsFound(NamedTuple):
    """The pictures that hold a part, best first, and of how many regions the part is."""

    found: list[PartFound]
    num_regions: int


class Near(NamedTuple):
    """A picture and those that are near it."""

    picture: Picture
    found: list[Found]


class Finder:
    """Searches the pictures of one model in one store."""

    def __init__(self, store: Store, info: ModelInfo) -> None:
        """Take a store that holds this model's vectors."""
        self._store = store
        self._info = info

    def search(self, query: Inferred | Picture, limit: int, min_score: float | None) -> list[Found]:
        """Find by the whole picture, itself left out."""
        if isinstance(query, Inferred):
            return self._store.search(query.unit["embedding"][None], limit, min_score)[0]
        embeddings = self._vectors([query.id], EMBEDDING)
        (found,) = self._store.search(embeddings[query.id][None], limit + 1, min_score)
        return [item for item in found if item.picture.id != query.id][:limit]

    def search_part(self, query: Inferred | Picture, box: Box, limit: int) -> PartsFound:
        """Find by the regions in a box, then rank what was found by correspondence.

        Raises:
            InvalidRequest: if the box has no area or lies outside of what the model sees.
            UnknownPicture: if the picture was deleted meanwhile.
        """
        asked = self._shown(query)
        cells = parts.cells_in(self._info, asked, box)
        num_candidates = max(LEAST_CANDIDATES, CANDIDATES * limit) + 1
        regions = asked.regions.features[cells]
        own = query.id if isinstance(query, Picture) else None
        candidates = {
            found.picture.id: found.picture
            for found in self._store.search_regions(regions, num_candidates)
            if found.picture.id != own
        }
        matched = []
        ids = list(candidates)
        for start in range(0, len(ids), MATCHED_AT_ONCE):
            kept = self._store.vectors(ids[start : start + MATCHED_AT_ONCE], REGIONS)
            for id, regions in kept.items():
                shown = self._show(candidates[id].about, regions)
                match = parts.match_part(self._info, asked, cells, shown)
                matched.append(PartFound(candidates[id], match))
        matched.sort(key=lambda item: (-item.match.score, -item.match.similarity, item.picture.id))
        return PartsFound(matched[:limit], len(cells))

    def near(
        self, start: str | None, limit: int, min_score: float
    ) -> tuple[list[Near], int, str | None]:
        """Look for near-duplicates of a page's pictures; see `Gallery.near`."""
        pictures, following = self._store.page(start, limit)
        ids = [picture.id for picture in pictures]
        embeddings = self._store.vectors(ids, EMBEDDING) if ids else {}
        there = [picture for picture in pictures if picture.id in embeddings]  # else deleted since
        if not there:
            return [], len(pictures), following
        queries = np.stack([embeddings[picture.id] for picture in there])
        answers = self._store.search(queries, MAX_NEAR + 1, min_score)
        near = [
            Near(picture, [item for item in found if item.picture.id > picture.id])
            for picture, found in zip(there, answers, strict=True)
        ]
        return [item for item in near if item.found], len(pictures), following

    def _shown(self, query: Inferred | Picture) -> Shown:
        """Give a query's regions and where they lie."""
        if isinstance(query, Picture):
            return self._show(query.about, self._vectors([query.id], REGIONS)[query.id])
        geometry, info = query.prepared.geometry, self._info
        visible = is_visible(geometry, info.grid, info.preprocess.crop)
        return Shown(RegionMap(query.arrays["regions"], info.grid, visible), geometry)

    def _show(self, about: About, regions: Floats) -> Shown:
        """Give the regions of a picture of the gallery and where they lie."""
        return parts.show(self._info, regions, geometry_of(about, self._info.preprocess))

    def _vectors(self, ids: Sequence[str], name: str) -> dict[str, Floats]:
        """Give vectors that must be there."""
        vectors = self._store.vectors(ids, name)
        if set(ids) - vectors.keys():  # deleted by another call
            raise UnknownPicture("the gallery has no picture of this id", field="id")
        return vectors


def geometry_of(about: About, spec: PreprocessSpec) -> Geometry:
    """Give where the model's square lay on a picture when it was indexed."""
    fit: Fit = about.fit
    return place(about.width, about.height, spec, fit)
