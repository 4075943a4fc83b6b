"""The gallery on a Qdrant server, which any number of services share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException

from service.errors import GalleryError, GalleryUnavailable
from service.gallery.points import (
    to_array,
    to_payload,
    to_picture,
    to_thumbnail,
    to_vectors,
)
from service.gallery.store import (
    EMBEDDING,
    NAME,
    REGIONS,
    THUMBNAIL,
    Entry,
    Floats,
    Found,
    Passport,
    Picture,
)

AnswerT = TypeVar("AnswerT")

FAULTS = (ApiException, QdrantException)
"""What the client raises; the latter where the server asks for fewer calls."""

TOLD = models.PayloadSelectorExclude(exclude=[THUMBNAIL])

WIDE = models.SearchParams(hnsw_ef=256)
"""How much of the server's graph a search looks at, where there is one: more than its default."""


class ServerStore:
    """A collection of a Qdrant server."""

    def __init__(self, client: QdrantClient, collection: str, passport: Passport) -> None:
        """Open the collection, or make it.

        Raises:
            GalleryError: if it is another model's or the server does not answer.
        """
        self._client = client
        self._name = collection
        place = f"gallery collection {collection}"
        try:
            self._begin(passport)
            found = client.get_collection(collection).config.metadata
        except FAULTS as error:
            reason = " ".join(str(error).split())[:300]
            raise GalleryError(f"{place} cannot be opened: {reason}") from error
        passport.check(found, place)

    def count(self) -> int:
        """Give how many pictures there are."""
        return self._ask(lambda: self._client.count(self._name)).count

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep pictures, in place of those of the same ids."""
        points = [
            models.PointStruct(
                id=entry.picture.id, vector=to_vectors(entry), payload=to_payload(entry)
            )
            for entry in entries
        ]
        self._ask(lambda: self._client.upsert(self._name, points, wait=True))

    def rename(self, names: Mapping[str, str]) -> None:
        """Call pictures something else, by id."""
        renamed = [
            models.SetPayloadOperation(
                # By points, one that is not there would be an error.
                set_payload=models.SetPayload(
                    payload={NAME: name},
                    filter=models.Filter(must=[models.HasIdCondition(has_id=[id])]),
                )
            )
            for id, name in names.items()
        ]
        self._ask(lambda: self._client.batch_update_points(self._name, renamed, wait=True))

    def known(self, ids: Sequence[str]) -> list[Picture]:
        """Give those of the pictures that are there."""
        records = self._ask(lambda: self._client.retrieve(self._name, ids, with_payload=TOLD))
        return [to_picture(record.id, record.payload) for record in records]

    def vectors(self, ids: Sequence[str], name: str) -> dict[str, Floats]:
        """Give the vectors of a name, by picture."""
        records = self._ask(
            lambda: self._client.retrieve(self._name, ids, with_payload=False, with_vectors=[name])
        )
        return {str(record.id): to_array(record.vector, name) for record in records}

    def thumbnail(self, id: str) -> bytes | None:
        """Give a picture's thumbnail, None if there is no such picture."""
        records = self._ask(
            lambda: self._client.retrieve(self._name, [id], with_payload=[THUMBNAIL])
        )
        return to_thumbnail(records[0].payload) if records else None

    def page(self, start: str | None, limit: int) -> tuple[list[Picture], str | None]:
        """Give pictures in the order of their ids, and where the next page starts."""
        records, following = self._ask(
            lambda: self._client.scroll(self._name, limit=limit, offset=start, with_payload=TOLD)
        )
        pictures = [to_picture(record.id, record.payload) for record in records]
        return pictures, None if following is None else str(following)

    def search(self, embeddings: Floats, limit: int, min_score: float | None) -> list[list[Found]]:
        """Give for each embedding the most similar pictures."""
        requests = [
            models.QueryRequest(
                query=embedding.tolist(),
                using=EMBEDDING,
                limit=limit,
                with_payload=TOLD,
                score_threshold=min_score,
                params=WIDE,
            )
            for embedding in embeddings
        ]
        answers = self._ask(lambda: self._client.query_batch_points(self._name, requests))
        return [_found(answer) for answer in answers]

    def search_regions(self, regions: Floats, limit: int) -> list[Found]:
        """Give the pictures that have all of the regions in them."""
        return _found(
            self._ask(
                lambda: self._client.query_points(
                    self._name, regions.tolist(), using=REGIONS, limit=limit, with_payload=TOLD
                )
            )
        )

    def delete(self, ids: Sequence[str]) -> None:
        """Forget pictures."""
        selected = models.PointIdsList(points=list(ids))
        self._ask(lambda: self._client.delete(self._name, selected, wait=True))

    def clear(self) -> None:
        """Forget all pictures."""
        everything = models.FilterSelector(filter=models.Filter())
        self._ask(lambda: self._client.delete(self._name, everything, wait=True))

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _begin(self, passport: Passport) -> None:
        """Make the collection where there is none."""
        if self._client.collection_exists(self._name):
            return
        try:
            self._client.create_collection(
                self._name, vectors_config=_config(passport.dim), metadata=asdict(passport)
            )
        except ApiException:
            if not self._client.collection_exists(self._name):  # else another service was first
                raise

    def _ask(self, call: Callable[[], AnswerT]) -> AnswerT:
        """Make a call of the server.

        Raises:
            GalleryUnavailable: if it does not answer as it should.
        """
        try:
            return call()
        except FAULTS as error:
            raise GalleryUnavailable("the gallery's server does not answer") from error


def _config(dim: int) -> dict[str, models.VectorParams]:
    """Say what is kept: a graph of the embeddings, regions in half precision and on the disk."""
    return {
        EMBEDDING: models.VectorParams(size=dim, distance=models.Distance.COSINE),
        REGIONS: models.VectorParams(
            size=dim,
            distance=models.Distance.COSINE,
            datatype=models.Datatype.FLOAT16,
            on_disk=True,
            hnsw_config=models.HnswConfigDiff(m=0),
            multivector_config=models.MultiVectorConfig(
                comparator=models.MultiVectorComparator.MAX_SIM
            ),
        ),
    }


def _found(answer: Any) -> list[Found]:  # Any: models.QueryResponse of two modules
    """Read what a search found."""
    return [Found(to_picture(point.id, point.payload), point.score) for point in answer.points]
