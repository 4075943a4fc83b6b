"""Galleries of the tiny model: in a folder, and on what speaks as a Qdrant server does."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient

from service.gallery.edge import EdgeStore
from service.gallery.server import ServerStore
from service.gallery.store import About, Entry, Passport, Picture, Store
from tests.service.gallery.qdrant import FakeQdrant, serve_qdrant
from tests.service.tiny_model import INFO, C


@pytest.fixture(params=["folder", "server"])
def open_store(request, tmp_path: Path) -> Iterator[Callable[[Passport], Store]]:
    """Open the one gallery of a test, again and again."""
    with ExitStack() as stack:
        if request.param == "server":
            url = stack.enter_context(serve_qdrant(FakeQdrant()))

        def open_it(passport: Passport = Passport.of(INFO)) -> Store:  # noqa: B008  # frozen
            if request.param == "folder":
                return EdgeStore(tmp_path / "gallery", passport)
            client = QdrantClient(url=url, check_compatibility=False)
            stack.callback(client.close)
            return ServerStore(client, "esvit", passport)

        yield open_it


@pytest.fixture
def store(open_store) -> Iterator[Store]:
    store = open_store()
    yield store
    store.close()


def id_of(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012x}"


def entry(number: int, seed: int | None = None, num_regions: int = 16) -> Entry:
    """Make a picture of random vectors of unit length."""
    rng = np.random.default_rng(number if seed is None else seed)
    vectors = rng.normal(size=(1 + num_regions, C)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    about = About(f"picture {number}", 96, 72, "stretch", "0" * 64)
    return Entry(Picture(id_of(number), about), vectors[0], vectors[1:], b"jpeg %d" % number)
