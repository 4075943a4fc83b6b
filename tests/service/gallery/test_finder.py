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


class Measuring(EdgeStore):
    """A store that notes how many pictures' vectors are asked for at once."""

    asked: list[int]

    def vectors(self, ids, name):
        self.asked.append(len(ids))
        return super().vectors(ids, name)


def test_a_search_by_box_holds_few_pictures_at_once_and_ranks_all(tmp_path, monkeypatch):
    store = Measuring(tmp_path, Passport.of(INFO))
    store.asked = []
    store.put([entry(number) for number in range(1, 30)])
    finder = Finder(store, INFO)
    at_once = finder.search_part(entry(7).picture, (0, 0, 50, 50), 40)
    assert store.asked == [1, 28]
    monkeypatch.setattr("service.gallery.finder.MATCHED_AT_ONCE", 5)
    store.asked = []
    assert finder.search_part(entry(7).picture, (0, 0, 50, 50), 40) == at_once
    assert store.asked == [1, 5, 5, 5, 5, 5, 3]
    assert len(at_once.found) == 28
    store.close()
