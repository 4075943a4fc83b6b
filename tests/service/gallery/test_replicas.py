"""Two services that share one server: what one is given the other finds.

The server is the memory of Qdrant's own client, which speaks the same interface.
"""

import httpx
import pytest
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException

from service.app import create_app
from service.gallery.gallery import Gallery
from service.gallery.server import ServerStore
from service.gallery.store import Passport
from tests.service.calls import post_form, post_raw, refused
from tests.service.pictures import png, scene
from tests.service.server import serve
from tests.service.tiny_model import INFO

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

PICTURES = [png(scene(seed=seed)) for seed in range(4)]


class Cut(QdrantClient):
    """A client whose server can be taken away."""

    is_cut = False

    def count(self, *args: object, **options: object):
        if self.is_cut:
            raise ResponseHandlingException(httpx.ConnectError("refused"))
        return super().count(*args, **options)


def serving(settings, client: QdrantClient):
    """Serve with a gallery on a server."""
    app = create_app(settings)
    store = ServerStore(client, "esvit", Passport.of(INFO))
    app.state.gallery = Gallery(store, INFO, max_pictures=100, threads=2)
    return serve(app)


def test_replicas_share_what_they_index(settings):
    server = QdrantClient(":memory:")
    with serving(settings, server) as one, serving(settings, server) as other:
        ids = [p["id"] for p in post_form(one, "/gallery/index", PICTURES).json()["images"]]
        again = post_form(other, "/gallery/index", PICTURES[2:]).json()
        assert [image["known"] for image in again["images"]] == [True, True]
        assert again["count"] == 4
        assert {p["id"] for p in other.get("/gallery").json()["pictures"]} == set(ids)
        for picture, id in zip(PICTURES, ids, strict=True):
            best = post_raw(other, "/gallery/search", picture, limit=1).json()["results"][0]
            assert best["id"] == id
            boxed = post_raw(other, "/gallery/search", picture, box=[30, 20, 70, 60]).json()
            assert boxed["results"][0]["id"] == id
        assert other.post("/gallery/delete", json={"ids": ids[:1]}).json()["count"] == 3
        refused(one.get(f"/gallery/thumbnails/{ids[0]}"), 404, "unknown_picture")


def test_a_server_that_goes_away_is_said_to_be_away(settings):
    server = Cut(":memory:")
    with serving(settings, server) as client:
        server.is_cut = True
        answer = post_raw(client, "/gallery/index", PICTURES[0])
        refused(answer, 503, "gallery_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert client.get("/readyz").status_code == 200
