"""Two services that share one server: what one is given the other finds.

The server is the memory of Qdrant's own client behind Qdrant's REST interface.
"""

from contextlib import ExitStack
from dataclasses import asdict

import pytest
from pydantic import SecretStr
from qdrant_client.models import VectorParams

from service.app import create_app
from service.errors import GalleryError
from service.gallery.store import Passport
from tests.service.calls import post_form, post_raw, refused
from tests.service.gallery.qdrant import FakeQdrant, serve_qdrant
from tests.service.pictures import png, scene
from tests.service.server import serve
from tests.service.tiny_model import INFO

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

PICTURES = [png(scene(seed=seed)) for seed in range(4)]


def serving(settings, url: str, key: str | None = None):
    """Serve with a gallery on a server."""
    update = {"gallery_url": url, "gallery_api_key": key and SecretStr(key)}
    return serve(create_app(settings.model_copy(update=update)))


def test_replicas_share_what_they_index(settings):
    with (
        serve_qdrant(FakeQdrant()) as url,
        serving(settings, url) as one,
        serving(settings, url) as other,
    ):
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


class Behind(FakeQdrant):
    """Says at first that there is no collection: another service has just made it."""

    has_said = False

    def _exists(self, *asked: object) -> object:
        if self.has_said:
            return super()._exists(*asked)
        self.has_said = True
        return {"exists": False}


def test_a_collection_that_another_service_has_just_made_is_taken(settings):
    fake = Behind()
    config = {"embedding": VectorParams(size=1, distance="Cosine")}
    fake.memory.create_collection("esvit", config, metadata=asdict(Passport.of(INFO)))
    with serve_qdrant(fake) as url, serving(settings, url) as client:
        assert client.get("/gallery").json()["count"] == 0


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_cannot_answer_is_said_to_be_away(settings, status):
    fake = FakeQdrant()
    with serve_qdrant(fake) as url, serving(settings, url) as client:
        fake.status = status
        answer = post_raw(client, "/gallery/index", PICTURES[0])
        refused(answer, 503, "gallery_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert client.get("/readyz").status_code == 200
        fake.status = 200
        assert post_raw(client, "/gallery/index", PICTURES[0]).json()["count"] == 1


def test_a_server_that_goes_away_is_said_to_be_away(settings):
    with ExitStack() as stack:
        with serve_qdrant(FakeQdrant()) as url:
            client = stack.enter_context(serving(settings, url))
        refused(client.get("/gallery"), 503, "gallery_unavailable")
        assert client.get("/readyz").status_code == 200


def test_a_server_that_asks_for_a_key_is_given_it(settings):
    with serve_qdrant(FakeQdrant("the servers own")) as url:
        with pytest.raises(GalleryError, match="gallery collection esvit cannot be opened"):
            create_app(settings.model_copy(update={"gallery_url": url}))
        with pytest.warns(
            UserWarning, match="insecure connection"
        ):  # and rightly: it is plain HTTP
            served = serving(settings, url, "the servers own")
        with served as client:
            assert client.get("/gallery").json()["count"] == 0
