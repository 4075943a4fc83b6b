"""The gallery in a folder: Qdrant's engine in this process, no server.

Every search looks at every vector: exact, and at 100,000 pictures still fast
(`python -m benchmarks.gallery`). What was put is in the engine's write-ahead log before `put`
returns, so a kill takes nothing away.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import qdrant_edge as qdrant

from service.errors import GalleryError
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

TOLD = qdrant.PayloadSelector.Exclude([THUMBNAIL])
EXACT = qdrant.SearchParams(exact=True)

AT_ONCE = 8
"""Queries that the engine answers in one go: until then it lets no other Python code run."""


class EdgeStore:
    """A folder that one process at a time may open."""

    def __init__(self, folder: Path, passport: Passport) -> None:
        """Open the folder's gallery, or begin one.

        Raises:
            GalleryError: if it is another model's, in use, or cannot be read or written.
        """
        self._lock = ExitStack()
        try:
            self._lock.enter_context(_locked(folder))  # the engine takes its own too late
            _begin(folder, passport)
            passport.check(json.loads((folder / "gallery.json").read_bytes()), f"gallery {folder}")
            self._shard = qdrant.EdgeShard.load(str(folder / "shard"))
            self._shard.optimize()  # gives back the room of what was deleted
        except GalleryError:
            self._lock.close()
            raise
        except Exception as error:  # the engine raises nothing narrower
            self._lock.close()
            raise GalleryError(f"gallery {folder} cannot be opened: {error}") from error

    def count(self) -> int:
        """Give how many pictures there are."""
        return self._shard.count(qdrant.CountRequest())

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep pictures, in place of those of the same ids."""
        points = [
            qdrant.Point(entry.picture.id, to_vectors(entry), to_payload(entry))
            for entry in entries
        ]
        self._shard.update(qdrant.UpdateOperation.upsert_points(points))
        self._shard.flush()

    def rename(self, names: Mapping[str, str]) -> None:
        """Call pictures something else, by id."""
        for id, name in names.items():  # by filter: an id that is not there would be an error
            this = qdrant.Filter(must=[qdrant.HasIdCondition({id})])
            renamed = qdrant.UpdateOperation.set_payload_by_filter(this, {NAME: name})
            self._shard.update(renamed)
        self._shard.flush()

    def known(self, ids: Sequence[str]) -> list[Picture]:
        """Give those of the pictures that are there."""
        records = self._shard.retrieve(list(ids), with_payload=TOLD, with_vector=False)
        return [to_picture(record.id, record.payload) for record in records]

    def vectors(self, ids: Sequence[str], name: str) -> dict[str, Floats]:
        """Give the vectors of a name, by picture."""
        records = self._shard.retrieve(list(ids), with_payload=False, with_vector=[name])
        return {str(record.id): to_array(record.vector, name) for record in records}

    def thumbnail(self, id: str) -> bytes | None:
        """Give a picture's thumbnail, None if there is no such picture."""
        records = self._shard.retrieve([id], with_payload=[THUMBNAIL], with_vector=False)
        return to_thumbnail(records[0].payload) if records else None

    def page(self, start: str | None, limit: int) -> tuple[list[Picture], str | None]:
        """Give pictures in the order of their ids, and where the next page starts."""
        request = qdrant.ScrollRequest(offset=start, limit=limit, with_payload=TOLD)
        records, following = self._shard.scroll(request)
        pictures = [to_picture(record.id, record.payload) for record in records]
        return pictures, None if following is None else str(following)

    def search(self, embeddings: Floats, limit: int, min_score: float | None) -> list[list[Found]]:
        """Give for each embedding the most similar pictures."""
        requests = [
            _request(embedding, EMBEDDING, limit=limit, min_score=min_score)
            for embedding in embeddings
        ]
        parts = (requests[i : i + AT_ONCE] for i in range(0, len(requests), AT_ONCE))
        answers = (self._shard.query_batch(qdrant.QueryBatchRequest(part)) for part in parts)
        return [_found(points) for answer in answers for points in answer]

    def search_regions(self, regions: Floats, limit: int) -> list[Found]:
        """Give the pictures that have all of the regions in them."""
        return _found(self._shard.query(_request(regions, REGIONS, limit=limit)))

    def delete(self, ids: Sequence[str]) -> None:
        """Forget pictures."""
        self._shard.update(qdrant.UpdateOperation.delete_points(list(ids)))
        self._shard.flush()

    def clear(self) -> None:
        """Forget all pictures."""
        self._shard.update(qdrant.UpdateOperation.delete_points_by_filter(qdrant.Filter()))
        self._shard.flush()

    def close(self) -> None:
        """Let go of the folder."""
        self._shard.close()
        self._lock.close()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder; the lock ends with the process, however it ends.

    Another process's engine changes the files below before it finds them locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError("another process has it open") from error
        yield


def _begin(folder: Path, passport: Passport) -> None:
    """Make a gallery where there is none; a kill leaves it begun or not, never half."""
    if (folder / "gallery.json").exists():
        return
    begun = folder / "begun"
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(parents=True)
    qdrant.EdgeShard.create(str(begun), _config(passport.dim)).close()
    shutil.rmtree(folder / "shard", ignore_errors=True)  # of a beginning that was killed below
    begun.rename(folder / "shard")
    written = folder / "gallery.json.new"
    written.write_text(json.dumps(asdict(passport), indent=1))
    written.rename(folder / "gallery.json")


def _config(dim: int) -> qdrant.EdgeConfig:
    """Say what is kept: no graph, regions in half precision and left on the disk."""
    regions = qdrant.EdgeVectorParams(
        size=dim,
        distance=qdrant.Distance.Cosine,
        datatype=qdrant.VectorStorageDatatype.Float16,
        memory=qdrant.Memory.Cold,
        multivector_config=qdrant.MultiVectorConfig(qdrant.MultiVectorComparator.MaxSim),
    )
    embedding = qdrant.EdgeVectorParams(size=dim, distance=qdrant.Distance.Cosine)
    no_graph = qdrant.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=10_000)
    vectors = {EMBEDDING: embedding, REGIONS: regions}
    return qdrant.EdgeConfig(vectors=vectors, hnsw_config=no_graph)


def _request(
    vector: Floats, name: str, *, limit: int, min_score: float | None = None
) -> qdrant.QueryRequest:
    """Ask for what is most similar to one embedding, or to several regions."""
    return qdrant.QueryRequest(
        query=qdrant.Query.Nearest(vector.tolist(), using=name),
        limit=limit,
        with_payload=TOLD,
        score_threshold=min_score,
        params=EXACT,
    )


def _found(points: Sequence[qdrant.ScoredPoint]) -> list[Found]:
    """Read what a search found."""
    return [Found(to_picture(point.id, point.payload), point.score) for point in points]
