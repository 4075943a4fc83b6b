"""Both stores keep the same promises."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from service.errors import GalleryError
from service.gallery.store import EMBEDDING, REGIONS, Passport
from tests.service.gallery.conftest import entry, id_of
from tests.service.tiny_model import INFO

PASSPORT = Passport.of(INFO)

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


def test_what_was_put_is_there_as_it_was(store):
    made = [entry(1), entry(2, num_regions=5)]
    store.put(made)
    assert store.count() == 2
    assert sorted(store.known([id_of(1), id_of(2), id_of(3)])) == [item.picture for item in made]
    for item in made:
        id = item.picture.id
        np.testing.assert_allclose(store.vectors([id], EMBEDDING)[id], item.embedding, atol=1e-6)
        np.testing.assert_allclose(store.vectors([id], REGIONS)[id], item.regions, atol=1e-3)
        assert store.thumbnail(id) == item.thumbnail
    assert store.thumbnail(id_of(3)) is None
    assert store.vectors([id_of(3)], EMBEDDING) == {}


def test_the_same_picture_put_again_is_there_once_and_anew(store):
    store.put([entry(1), entry(2)])
    store.put([entry(1, seed=9)])
    assert store.count() == 2
    embedding = store.vectors([id_of(1)], EMBEDDING)[id_of(1)]
    np.testing.assert_allclose(embedding, entry(1, seed=9).embedding, atol=1e-6)


def test_search_equals_the_written_out_ranking(store):
    made = [entry(number) for number in range(1, 40)]
    store.put(made)
    queries = np.stack([entry(100).embedding, entry(101).embedding])
    for query, found in zip(queries, store.search(queries, 7, None), strict=True):
        cosines = {item.picture.id: float(item.embedding @ query) for item in made}
        expected = sorted(cosines, key=cosines.__getitem__, reverse=True)[:7]
        assert [item.picture.id for item in found] == expected
        np.testing.assert_allclose(
            [i.score for i in found], [cosines[i] for i in expected], atol=1e-5
        )
    least = cosines[expected[2]] - 1e-4
    (some,) = store.search(queries[1:], 7, least)
    assert [item.picture.id for item in some] == expected[:3]


def test_many_queries_are_answered_as_each_alone(store):
    store.put([entry(number) for number in range(1, 30)])
    queries = np.stack([entry(100 + number).embedding for number in range(21)])
    together = store.search(queries, 3, None)
    assert together == [store.search(query[None], 3, None)[0] for query in queries]
    assert store.search(queries[:0], 3, None) == []


def test_search_by_regions_sums_the_largest_cosines(store):
    made = [entry(number, num_regions=number % 7 + 1) for number in range(1, 30)]
    store.put(made)
    asked = entry(100).regions[:3]
    scores = {i.picture.id: float((asked @ i.regions.T).max(axis=1).sum()) for i in made}
    found = store.search_regions(asked, 5)
    expected = sorted(scores, key=scores.__getitem__, reverse=True)[:5]
    assert [item.picture.id for item in found] == expected
    np.testing.assert_allclose([i.score for i in found], [scores[i] for i in expected], atol=5e-3)


def test_pages_lead_through_all_pictures_once(store):
    store.put([entry(number) for number in range(1, 8)])
    start, seen = None, []
    while True:
        pictures, start = store.page(start, 3)
        assert len(pictures) <= 3
        seen += [picture.id for picture in pictures]
        if start is None:
            break
    assert seen == [id_of(number) for number in range(1, 8)]


def test_a_picture_that_is_renamed_keeps_all_else(store):
    store.put([entry(1), entry(2)])
    store.rename({id_of(2): "another", id_of(9): "nowhere"})
    pictures = {picture.id: picture.about for picture in store.page(None, 9)[0]}
    assert pictures == {
        id_of(1): entry(1).picture.about,
        id_of(2): entry(2).picture.about._replace(name="another"),
    }
    assert store.thumbnail(id_of(2)) == b"jpeg 2"
    found = store.search(entry(2).embedding[None], 1, None)[0]
    assert [item.picture.about.name for item in found] == ["another"]


def test_what_was_deleted_is_gone(store):
    store.put([entry(number) for number in range(1, 5)])
    store.delete([id_of(1), id_of(3), id_of(9)])
    assert [picture.id for picture in store.page(None, 9)[0]] == [id_of(2), id_of(4)]
    assert len(store.search(entry(1).embedding[None], 9, None)[0]) == 2
    store.clear()
    assert store.count() == 0
    store.put([entry(1)])
    assert store.count() == 1


def test_a_gallery_that_is_opened_again_holds_what_it_held(open_store):
    first = open_store()
    first.put([entry(1), entry(2)])
    first.close()
    again = open_store()
    assert again.count() == 2
    assert again.thumbnail(id_of(2)) == b"jpeg 2"
    again.close()


@pytest.mark.parametrize(
    "other",
    [
        replace(PASSPORT, weights_sha256="1" * 64, model="another"),
        replace(PASSPORT, preprocess=PASSPORT.preprocess | {"crop": 64}),
    ],
)
def test_another_model_is_refused(open_store, other):
    first = open_store()
    first.close()
    with pytest.raises(GalleryError, match=r"was filled by model tiny .* choose another place"):
        open_store(other)


def test_two_processes_do_not_share_a_folder(tmp_path):
    from service.gallery.edge import EdgeStore

    first = EdgeStore(tmp_path, PASSPORT)
    first.put([entry(1)])
    opening = (
        "import sys; from pathlib import Path; from service.gallery.edge import EdgeStore; "
        "from tests.service.gallery.test_store import PASSPORT as passport; "
        "EdgeStore(Path(sys.argv[1]), passport)"
    )
    second = subprocess.run(
        [sys.executable, "-c", opening, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert second.stderr.endswith("cannot be opened: another process has it open\n")
    first.put([entry(2)])  # it has not noticed
    first.close()
    again = EdgeStore(tmp_path, PASSPORT)
    assert again.count() == 2
    again.close()


def test_a_beginning_that_was_killed_begins_again(tmp_path):
    from service.gallery.edge import EdgeStore

    EdgeStore(tmp_path, PASSPORT).close()
    (tmp_path / "gallery.json").unlink()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "half").write_text("")
    store = EdgeStore(tmp_path, PASSPORT)
    assert store.count() == 0
    store.close()


@pytest.mark.parametrize("content", ["", "[]", '{"format": 0}'])
def test_what_is_no_gallery_is_refused(tmp_path, content):
    from service.gallery.edge import EdgeStore

    (tmp_path / "gallery.json").write_text(content)
    with pytest.raises(GalleryError, match=r"no gallery of this version|cannot be opened"):
        EdgeStore(tmp_path, PASSPORT)
