"""Qdrant's REST interface before the memory of its own client: what goes over the wire, no server.

Requests are read by the models that Qdrant's client generates from the server's description of
itself, so a field that the server does not know is refused. A write that is not waited for is not
done: the server may not have done it yet either.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, TypeAdapter
from qdrant_client import QdrantClient, models

from tests.service.server import run

COLLECTION = "/collections/{name}"
POINTS = "/collections/{name}/points"


class FakeQdrant:
    """The interface of one server; `status` other than 200 is what it answers to everything."""

    def __init__(self, key: str | None = None) -> None:
        self.memory = QdrantClient(":memory:")
        self.key = key
        self.status = 200
        self.app = FastAPI()
        self.app.middleware("http")(self._gate)
        for method, path, act in (
            ("GET", f"{COLLECTION}/exists", self._exists),
            ("PUT", COLLECTION, self._create),
            ("GET", COLLECTION, self._describe),
            ("PUT", POINTS, self._upsert),
            ("POST", POINTS, self._retrieve),
            ("POST", f"{POINTS}/count", self._count),
            ("POST", f"{POINTS}/scroll", self._scroll),
            ("POST", f"{POINTS}/query", self._query),
            ("POST", f"{POINTS}/query/batch", self._query_batch),
            ("POST", f"{POINTS}/delete", self._delete),
            ("POST", f"{POINTS}/batch", self._batch),
        ):
            self.app.add_api_route(path, answering(act), methods=[method])

    async def _gate(self, request: Request, call) -> Response:
        if self.status != 200:
            return JSONResponse({}, self.status, headers={"retry-after": "3"})
        if self.key is not None and request.headers.get("api-key") != self.key:
            return JSONResponse({"status": {"error": "no key"}}, 401)
        return await call(request)

    def _exists(self, name: str, request: Request, body: bytes) -> object:
        return {"exists": self.memory.collection_exists(name)}

    def _create(self, name: str, request: Request, body: bytes) -> object:
        asked = models.CreateCollection.model_validate_json(body)
        return self.memory.create_collection(
            name, vectors_config=asked.vectors, metadata=asked.metadata
        )

    def _describe(self, name: str, request: Request, body: bytes) -> object:
        return self.memory.get_collection(name)

    def _upsert(self, name: str, request: Request, body: bytes) -> object:
        points = models.PointsList.model_validate_json(body).points
        return written(request, lambda: self.memory.upsert(name, points))

    def _delete(self, name: str, request: Request, body: bytes) -> object:
        selected = TypeAdapter(models.PointsSelector).validate_json(body)
        return written(request, lambda: self.memory.delete(name, selected))

    def _batch(self, name: str, request: Request, body: bytes) -> object:
        asked = models.UpdateOperations.model_validate_json(body).operations
        return written(request, lambda: self.memory.batch_update_points(name, asked))

    def _retrieve(self, name: str, request: Request, body: bytes) -> object:
        asked = models.PointRequest.model_validate_json(body)
        return self.memory.retrieve(name, asked.ids, asked.with_payload, asked.with_vector)

    def _count(self, name: str, request: Request, body: bytes) -> object:
        return self.memory.count(name, exact=models.CountRequest.model_validate_json(body).exact)

    def _scroll(self, name: str, request: Request, body: bytes) -> object:
        asked = models.ScrollRequest.model_validate_json(body)
        points, following = self.memory.scroll(
            name, limit=asked.limit, offset=asked.offset, with_payload=asked.with_payload
        )
        return {"points": [as_json(point) for point in points], "next_page_offset": following}

    def _query(self, name: str, request: Request, body: bytes) -> object:
        asked = models.QueryRequest.model_validate_json(body)
        return self.memory.query_batch_points(name, [asked])[0]

    def _query_batch(self, name: str, request: Request, body: bytes) -> object:
        asked = models.QueryRequestBatch.model_validate_json(body).searches
        return self.memory.query_batch_points(name, asked)


def answering(act: Callable[[str, Request, bytes], object]):
    """Make an endpoint that answers, and refuses, as Qdrant does."""

    async def endpoint(name: str, request: Request) -> Response:
        try:
            result = act(name, request, await request.body())
        except ValueError as error:
            return JSONResponse({"status": {"error": str(error)}, "time": 0.0}, 400)
        return JSONResponse({"result": as_json(result), "status": "ok", "time": 0.0})

    return endpoint


def written(request: Request, write: Callable[[], object]) -> object:
    """Write if that is waited for."""
    if request.query_params.get("wait") != "true":
        return {"operation_id": 0, "status": "acknowledged"}
    return write()


def as_json(value: object) -> object:
    """Give a model, or models, as what is sent of it."""
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return json.loads(value.model_dump_json()) if isinstance(value, BaseModel) else value


@contextmanager
def serve_qdrant(fake: FakeQdrant) -> Iterator[str]:
    """Serve it while the block runs, and give its address."""
    with run(uvicorn.Config(fake.app, port=0, log_level="warning")) as port:
        yield f"http://127.0.0.1:{port}"
    fake.memory.close()
