"""The gallery over HTTP: in, found, gone."""

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from service.app import create_app
from service.gallery import schemas
from service.parity import PHOTOGRAPHS
from service.settings import Settings
from tests.service.calls import post_form, post_json, post_raw, refused
from tests.service.pictures import jpeg, png, scene
from tests.service.server import serve

PICTURES = [png(scene(seed=seed)) for seed in range(5)]


@pytest.fixture(scope="module")
def service(settings: Settings, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("gallery")
    asked = settings.model_copy(update={"gallery_path": folder, "max_gallery_pictures": 8})
    with serve(create_app(asked)) as client:
        yield client


@pytest.fixture
def gallery(service: httpx.Client):
    """An empty gallery."""
    service.post("/gallery/delete", json={"all": True}).raise_for_status()
    return service


def index(client: httpx.Client, files=PICTURES, **options) -> list[dict]:
    """Put pictures in and give their ids."""
    answer = post_form(client, "/gallery/index", files, **options)
    assert answer.status_code == 200, answer.text
    schemas.IndexAnswer.model_validate_json(answer.content)
    return [image["id"] for image in answer.json()["images"]]


def found(response: httpx.Response) -> list[str]:
    """Give the ids that a search found."""
    assert response.status_code == 200, response.text
    schemas.SearchAnswer.model_validate_json(response.content)
    return [picture["id"] for picture in response.json()["results"]]


@pytest.mark.parametrize("post", [post_raw, post_form, post_json])
def test_images_come_in_three_forms(gallery, post):
    images = PICTURES[0] if post is post_raw else PICTURES[:2]
    answer = post(gallery, "/gallery/index", images, fit="stretch").json()
    assert answer["count"] == (1 if post is post_raw else 2)
    name = "name" if post is post_form else ""  # the file's, where a form says one
    assert answer["images"][0] | {"id": None} == {
        "index": 0, "id": None, "name": name, "width": 96, "height": 72, "fit": "stretch",
        "known": False,
    }  # fmt: skip


def test_what_is_there_is_neither_computed_nor_kept_again(gallery):
    inferred = "esvit_images_total"
    ids = index(gallery, [*PICTURES[:3], PICTURES[0]], names=["a", "b", "c", "d"])
    assert ids[3] == ids[0]
    before = count_of(gallery, inferred)
    answer = post_form(gallery, "/gallery/index", PICTURES[1:4]).json()
    assert [image["known"] for image in answer["images"]] == [True, True, False]
    assert [image["name"] for image in answer["images"]] == ["b", "c", "name"]
    assert answer["count"] == 4
    assert count_of(gallery, inferred) == before + 1


def test_pictures_are_called_as_their_files(gallery):
    parts = [
        ("file", ("../../a b/cat.png", PICTURES[0])),
        ("file", ("C:\\pictures\\x\x85" + "y" * 400, PICTURES[1])),
        ("file", ("ü.png", PICTURES[2])),
    ]
    answer = gallery.post("/gallery/index", files=parts).json()
    assert [image["name"] for image in answer["images"]] == ["cat.png", "x" + "y" * 299, "ü.png"]
    listed = {picture["name"] for picture in gallery.get("/gallery").json()["pictures"]}
    assert "cat.png" in listed


def test_names_that_are_given_rename_what_is_there(gallery):
    post_raw(gallery, "/gallery/index", PICTURES[0])
    before = count_of(gallery, "esvit_images_total")

    def name_after(names: str | None, file_name: str) -> str:
        data = {} if names is None else {"names": names}
        files = {"file": (file_name, PICTURES[0])}
        (image,) = gallery.post("/gallery/index", files=files, data=data).json()["images"]
        assert image["known"]
        (picture,) = gallery.get("/gallery").json()["pictures"]
        assert picture["name"] == image["name"]
        return image["name"]

    assert name_after(None, "a.png") == "a.png"  # there was none
    assert name_after(None, "b.png") == "a.png"  # a file of another name is the same picture
    assert name_after('["c"]', "b.png") == "c"
    assert count_of(gallery, "esvit_images_total") == before


def test_a_picture_of_another_fit_keeps_its_name(gallery):
    index(gallery, PICTURES[:1], names=["a"])
    (picture,) = post_raw(gallery, "/gallery/index", PICTURES[0], fit="pad").json()["images"]
    assert (picture["name"], picture["fit"], picture["known"]) == ("a", "pad", False)


def test_pictures_are_seen_whole_unless_asked_otherwise(gallery):
    (id,) = index(gallery, PICTURES[:1])
    answer = post_raw(gallery, "/gallery/search", PICTURES[0]).json()
    (picture,) = answer["results"]
    assert (picture["id"], picture["fit"]) == (id, "stretch")
    assert picture["score"] == pytest.approx(1.0, abs=1e-5)


def test_a_box_outside_is_refused_by_its_name(gallery):
    index(gallery, PICTURES[:1])
    answer = post_raw(gallery, "/gallery/search", PICTURES[0], fit="crop", box="[0, 0, 2, 2]")
    assert refused(answer, 422, "region_out_of_bounds")["field"] == "box"


def count_of(client: httpx.Client, series: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{series} ")).split()[1])


def test_another_fit_takes_the_pictures_place(gallery):
    ids = index(gallery, fit="crop")
    assert index(gallery, fit="pad") == ids
    assert {picture["fit"] for picture in gallery.get("/gallery").json()["pictures"]} == {"pad"}


def test_search_ranks_as_the_vectors_of_embed_do(gallery):
    ids = index(gallery, fit="pad")
    query = jpeg(scene(seed=2), quality=40)
    answer = post_form(gallery, "/embed", [*PICTURES, query], fit="pad").json()["embeddings"]
    cosines = np.array(answer[:-1]) @ np.array(answer[-1])
    response = post_raw(gallery, "/gallery/search", query, fit="pad", limit=4)
    assert found(response) == [ids[i] for i in np.argsort(-cosines)[:4]]
    scores = [picture["score"] for picture in response.json()["results"]]
    np.testing.assert_allclose(scores, np.sort(cosines)[::-1][:4], atol=1e-5)
    least = float(np.sort(cosines)[-2]) - 1e-4
    assert len(found(post_raw(gallery, "/gallery/search", query, fit="pad", min_score=least))) == 2


def test_more_like_this_leaves_itself_out(gallery):
    ids = index(gallery)
    answer = gallery.post("/gallery/similar", json={"id": ids[1]})
    assert sorted(found(answer)) == sorted(set(ids) - {ids[1]})
    by_file = [
        id for id in found(post_raw(gallery, "/gallery/search", PICTURES[1])) if id != ids[1]
    ]
    assert found(answer) == by_file


def test_a_box_finds_its_part_where_it_was_pasted(gallery):
    """The upper left quarter of one picture is the lower right quarter of another."""
    one, other = scene(128, 128, seed=10), scene(128, 128, seed=11)
    other.paste(one.crop((0, 0, 64, 64)), (64, 64))
    query, pasted = png(one), png(other)
    ids = index(gallery, [pasted, *PICTURES, query], fit="stretch")
    answer = post_raw(gallery, "/gallery/search", query, fit="stretch", box=[0, 0, 64, 64])
    assert found(answer)[:2] == [ids[-1], ids[0]]
    best = answer.json()["results"][1]
    assert (best["mutual"], best["regions"]) == (4, 4)
    assert best["box"] == [64, 64, 128, 128]
    assert best["score"] == pytest.approx(1.0, abs=1e-3)
    same = gallery.post("/gallery/similar", json={"id": ids[-1], "box": [0, 0, 64, 64]})
    assert found(same)[0] == ids[0]
    assert same.json()["results"][0]["box"] == [64, 64, 128, 128]


def test_near_duplicates_are_told_once_each(gallery):
    again = jpeg(scene(seed=3), quality=60)
    ids = index(gallery, [*PICTURES, again])
    pairs, start, looked_at = set(), None, 0
    while True:
        body = {"min_score": 0.995, "start": start, "limit": 2}
        response = gallery.post("/gallery/duplicates", json=body)
        answer = schemas.DuplicatesAnswer.model_validate_json(response.content)
        looked_at += answer.looked_at
        for picture in answer.pictures:
            pairs |= {(picture.id, near.id) for near in picture.near}
        start = answer.next
        if start is None:
            break
    assert looked_at == 6
    assert pairs == {tuple(sorted((ids[3], ids[5])))}


def test_pages_and_thumbnails(gallery):
    ids = index(gallery, [png(scene(700, 350)), *PICTURES], names=["wide", *"abcde"])
    first = gallery.get("/gallery", params={"limit": 4}).json()
    second = gallery.get("/gallery", params={"limit": 4, "start": first["next"]}).json()
    listed = first["pictures"] + second["pictures"]
    assert [picture["id"] for picture in listed] == sorted(ids)
    assert (second["next"], second["count"]) == (None, 6)
    for picture in listed:
        response = gallery.get(f"/gallery/thumbnails/{picture['id']}")
        assert response.headers["content-type"] == "image/jpeg"
        size = Image.open(io.BytesIO(response.content)).size
        assert size == ((320, 160) if picture["name"] == "wide" else (96, 72))
    assert gallery.get("/gallery", params={"limit": 0}).json()["count"] == 6


def test_delete_says_how_many_were_there(gallery):
    ids = index(gallery)
    answer = gallery.post("/gallery/delete", json={"ids": [ids[0], ids[0], ids[1][::-1]]})
    refused(answer, 422, "invalid_request")
    unknown = "0" * 8 + ids[1][8:]
    answer = gallery.post("/gallery/delete", json={"ids": [ids[0], ids[0], unknown]}).json()
    assert answer == {"deleted": 1, "count": 4}
    refused(gallery.get(f"/gallery/thumbnails/{ids[0]}"), 404, "unknown_picture")
    refused(gallery.post("/gallery/similar", json={"id": ids[0]}), 404, "unknown_picture")
    assert gallery.post("/gallery/delete", json={"all": True}).json() == {"deleted": 4, "count": 0}


def test_a_bad_image_costs_no_other_its_place(gallery):
    answer = post_form(gallery, "/gallery/index", [PICTURES[0], b"none", PICTURES[1]]).json()
    assert [image and image["index"] for image in answer["images"]] == [0, None, 2]
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [
        (1, "undecodable_image")
    ]
    files = [PICTURES[2], b"none"]
    error = refused(
        post_form(gallery, "/gallery/index", files, on_error="fail"), 422, "undecodable_image"
    )
    assert error["index"] == 1
    assert gallery.get("/gallery").json()["count"] == 2


def test_a_full_gallery_takes_no_more(gallery):
    index(gallery)
    more = [png(scene(seed=seed)) for seed in range(10, 14)]
    error = refused(post_form(gallery, "/gallery/index", more), 413, "gallery_full")
    assert error["limit"] == 8
    assert gallery.get("/gallery").json()["count"] == 5
    index(gallery, more[:3])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("similar", {}),
        ("similar", {"id": "x"}),
        ("similar", {"id": "0" * 36}),
        ("similar", {"id": "00000000-0000-0000-0000-000000000000", "limit": 0}),
        ("similar", {"id": "00000000-0000-0000-0000-000000000000", "limit": 100_000}),
        ("similar", {"id": "00000000-0000-0000-0000-000000000000", "box": [0, 0, 1]}),
        (
            "similar",
            {"id": "00000000-0000-0000-0000-000000000000", "box": [0, 0, 1, 1], "min_score": 0},
        ),
        ("delete", {}),
        ("delete", {"all": True, "ids": ["00000000-0000-0000-0000-000000000000"]}),
        ("delete", {"all": 7}),
        ("duplicates", {"min_score": 2}),
        ("duplicates", {"unknown": 1}),
    ],
)
def test_nonsense_is_refused(gallery, path, body):
    refused(gallery.post(f"/gallery/{path}", json=body), 422, "invalid_request")


def test_names_are_as_many_as_images(gallery):
    error = refused(
        post_form(gallery, "/gallery/index", PICTURES[:2], names=["one"]), 422, "invalid_request"
    )
    assert error["field"] == "names"
    long = post_form(gallery, "/gallery/index", PICTURES[:1], names=["x" * 301])
    refused(long, 422, "invalid_request")


def test_bodies_of_other_kinds_are_refused(gallery):
    text = {"content-type": "text/plain"}
    path = "/gallery/duplicates"
    refused(gallery.post(path, content=b"{}", headers=text), 415, "unsupported_media_type")
    kind = {"content-type": "application/json"}
    refused(gallery.post(path, content=b"[", headers=kind), 400, "invalid_json")
    twice = gallery.post(f"{path}?limit=3", json={"limit": 4})
    assert refused(twice, 422, "invalid_request")["field"] == "limit"


def test_a_service_without_a_gallery_says_how_to_get_one(client):
    assert client.get("/info").json()["gallery"] is False
    for call in ("index", "search", "similar", "duplicates", "delete"):
        error = refused(client.post(f"/gallery/{call}"), 404, "gallery_off")
        assert "ESVIT_GALLERY_PATH" in error["message"]
    refused(client.get("/gallery"), 404, "gallery_off")


def test_ids_follow_from_file_and_weights(gallery):
    """Pinned: other ids would make every picture of a user's gallery a new one."""
    cat = PHOTOGRAPHS[0].read_bytes()
    assert index(gallery, [cat]) == ["6dfa8e17-4483-5a3d-8300-7a1d5f79d8b9"]
