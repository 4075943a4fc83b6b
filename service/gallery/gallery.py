"""The gallery: pictures in, pictures found. What waits for the store runs in worker threads.

A picture's id follows from its file and the model's weights. So one that is sent twice, by the same
client or by another, before or after a crash, is the same picture and is there once.
"""

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple, TypeVar

import anyio
import anyio.to_thread

from service.contract import ModelInfo
from service.errors import GalleryFull, ServiceError, UnknownPicture
from service.gallery import parts
from service.gallery.finder import Finder, Near, PartsFound
from service.gallery.parts import Box
from service.gallery.store import Entry, Found, Passport, Picture, Store
from service.thumbnails import to_jpeg
from service.tickets import Inferred

NAMESPACE = uuid.UUID("6116b366-a2ec-5d6f-abf6-f3367990829d")
"""Of the pictures' ids; another one would make every picture a new one."""

AnswerT = TypeVar("AnswerT")


class File(NamedTuple):
    """A picture's file: its id in the gallery and its digest."""

    id: str
    sha256: str


class Gallery:
    """The pictures of one model in one store."""

    def __init__(self, store: Store, info: ModelInfo, *, max_pictures: int, threads: int) -> None:
        """Take a store that holds this model's vectors.

        Args:
            store: Where the pictures are.
            info: The model's passport.
            max_pictures: How many there may be.
            threads: How many calls of the store are under way at once.
        """
        self._store = store
        self._info = info
        self._finder = Finder(store, info)
        self._max_pictures = max_pictures
        self._limiter = anyio.CapacityLimiter(threads)

    def check(self, info: ModelInfo) -> None:
        """Refuse a model whose vectors cannot be compared with those that are there.

        Raises:
            GalleryError: saying which model filled the gallery.
        """
        Passport.of(info).check(asdict(Passport.of(self._info)), "the gallery")

    async def identify(self, files: Sequence[bytes | ServiceError]) -> list[File | None]:
        """Give each file's id and digest, None for what is no file."""
        return await self._wait(lambda: [self._identify(file) for file in files])

    async def known(self, ids: Sequence[str]) -> dict[str, Picture]:
        """Give those of the pictures that are there, by id."""
        pictures = await self._wait(lambda: self._store.known(ids))
        return {picture.id: picture for picture in pictures}

    async def put(self, made: Sequence[tuple[Picture, Inferred]]) -> None:
        """Keep pictures; on return they outlast a kill.

        Raises:
            GalleryFull: if there would be too many.
        """
        await self._wait(lambda: self._put(made))

    async def rename(self, names: Mapping[str, str]) -> None:
        """Call pictures something else, by id."""
        if names:
            await self._wait(lambda: self._store.rename(names))

    async def count(self) -> int:
        """Give how many pictures there are."""
        return await self._wait(self._store.count)

    async def page(self, start: str | None, limit: int) -> tuple[list[Picture], str | None]:
        """Give pictures in the order of their ids, and where the next page starts."""
        if limit == 0:
            return [], start
        return await self._wait(lambda: self._store.page(start, limit))

    async def thumbnail(self, id: str) -> bytes:
        """Give a picture's thumbnail.

        Raises:
            UnknownPicture: if there is no such picture.
        """
        thumbnail = await self._wait(lambda: self._store.thumbnail(id))
        if thumbnail is None:
            raise UnknownPicture("the gallery has no picture of this id")
        return thumbnail

    async def picture(self, id: str) -> Picture:
        """Give a picture.

        Raises:
            UnknownPicture: if there is no such picture.
        """
        known = await self.known([id])
        if id not in known:
            raise UnknownPicture("the gallery has no picture of this id", field="id")
        return known[id]

    async def search(
        self, query: Inferred | Picture, limit: int, min_score: float | None
    ) -> list[Found]:
        """Find the pictures that are most similar to one, itself left out."""
        return await self._wait(lambda: self._finder.search(query, limit, min_score))

    async def search_part(self, query: Inferred | Picture, box: Box, limit: int) -> PartsFound:
        """Find the pictures that hold a part of one, itself left out.

        Raises:
            InvalidRequest: if the box has no area or lies outside of what the model sees.
        """
        return await self._wait(lambda: self._finder.search_part(query, box, limit))

    async def near(
        self, start: str | None, limit: int, min_score: float
    ) -> tuple[list[Near], int, str | None]:
        """Look for near-duplicates of a page's pictures among all.

        Returns:
            Those that have any, how many were looked at, and where the next page starts.
        """
        return await self._wait(lambda: self._finder.near(start, limit, min_score))

    async def delete(self, ids: Sequence[str]) -> int:
        """Forget pictures; gives how many of them were there."""
        known = await self.known(ids)
        await self._wait(lambda: self._store.delete(list(known)))
        return len(known)

    async def clear(self) -> int:
        """Forget all pictures; gives how many there were."""
        count = await self.count()
        await self._wait(self._store.clear)
        return count

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()

    async def _wait(self, call: Callable[[], AnswerT]) -> AnswerT:
        """Make a call that waits, in a worker thread."""
        return await anyio.to_thread.run_sync(call, limiter=self._limiter)

    def _identify(self, file: bytes | ServiceError) -> File | None:
        """Give one file's id and digest."""
        if isinstance(file, ServiceError):
            return None
        sha256 = hashlib.sha256(file).hexdigest()
        of_model = f"{self._info.weights_sha256}/{sha256}"
        return File(str(uuid.uuid5(NAMESPACE, of_model)), sha256)

    def _put(self, made: Sequence[tuple[Picture, Inferred]]) -> None:
        """Keep pictures."""
        if not made:
            return
        known = self._store.known([picture.id for picture, _ in made])
        if self._store.count() + len(made) - len(known) > self._max_pictures:
            limit = self._max_pictures
            raise GalleryFull(f"the gallery holds at most {limit} pictures", limit=limit)
        self._store.put([self._entry(picture, inferred) for picture, inferred in made])

    def _entry(self, picture: Picture, inferred: Inferred) -> Entry:
        """Give what is kept of one picture."""
        assert inferred.prepared.picture is not None
        geometry = inferred.prepared.geometry
        return Entry(
            picture=picture,
            embedding=inferred.unit["embedding"],
            regions=parts.take_visible(self._info, inferred.arrays["regions"], geometry),
            thumbnail=to_jpeg(inferred.prepared.picture),
        )
