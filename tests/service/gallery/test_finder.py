"""What a search does when pictures go away while it looks."""

import pytest

from service.errors import UnknownPicture
from service.gallery.edge import EdgeStore
from service.gallery.finder import Finder
from service.gallery.store import Passport
from tests.service.gallery.conftest import entry
from tests.service.tiny_model import INFO


class Forgetful(EdgeStore):
    """A store whose pictures are deleted between two calls."""

    def vectors(self, ids, name):
        return {}


@pytest.fixture
def finder(tmp_path):
    store = Forgetful(tmp_path, Passport.of(INFO))
    store.put([entry(1), entry(2)])
    yield Finder(store, INFO)
    store.close()


def test_near_duplicates_of_what_was_deleted_are_none(finder):
    assert finder.near(None, 10, 0.5) == ([], 2, None)


def test_what_was_deleted_is_unknown(finder):
    for search in (
        lambda picture: finder.search(picture, 5, None),
        lambda picture: finder.search_part(picture, (0, 0, 50, 50), 5),
    ):
        with pytest.raises(UnknownPicture):
            search(entry(1).picture)
