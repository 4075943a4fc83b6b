"""The gallery's tab in a real browser: pictures in, found by one or by a part, gone."""

import base64
import re

import numpy as np
import pytest

from service.app import create_app
from service.settings import Settings
from tests.browser.playground import DROP, Playground
from tests.service.pictures import png, scene
from tests.service.server import serve

ONE, OTHER = scene(256, 256, seed=1), scene(256, 256, seed=2)
PASTED = OTHER.copy()
PASTED.paste(ONE.crop((0, 0, 128, 128)), (128, 128))

PICTURES = {
    "one.png": png(ONE),
    "pasted.png": png(PASTED),
    "again.png": png(ONE.resize((250, 250))),
    "third.png": png(scene(300, 200, seed=3)),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    settings = Settings(
        engine="onnxruntime", device="cpu", threads=2, gallery_path=folder, deadline_s=600
    )
    with serve(create_app(settings)) as client:
        client.timeout = 600  # the machine may be busy
        yield client


@pytest.fixture
def gallery(page, service) -> Playground:
    """The tab, with four pictures in the gallery."""
    service.post("/gallery/delete", json={"all": True}).raise_for_status()
    playground = Playground(page, service).open("gallery")
    folder = [{"name": n, "mimeType": "image/png", "buffer": d} for n, d in PICTURES.items()]
    page.get_by_label("Add pictures…").set_input_files(folder)
    page.get_by_role("status").filter(has_text="4 of 4: 4 new, 0 known, 0 refused").wait_for()
    page.get_by_role("heading", name="4 pictures").wait_for()
    return playground


def cards(gallery: Playground) -> list[str]:
    """Give the names on the wall, in order."""
    return gallery.page.locator(".wall .card .caption span:first-child").all_inner_texts()


def card(gallery: Playground, name: str):
    return gallery.page.locator(".card", has_text=name)


def found(gallery: Playground, heading: str) -> list[str]:
    """Wait for the answer of a search, and give the names."""
    gallery.page.get_by_role("heading", name=heading).wait_for()
    return cards(gallery)


def test_pictures_are_added_once_and_bad_ones_named(gallery):
    files = [
        {"name": "bad.png", "mimeType": "image/png", "buffer": b"none"},
        {"name": "one.png", "mimeType": "image/png", "buffer": PICTURES["one.png"]},
    ]
    gallery.page.get_by_label("Add pictures…").set_input_files(files)
    told = gallery.page.get_by_role("status").filter(has_text="2 of 2: 0 new, 1 known, 1 refused")
    told.wait_for()
    gallery.page.locator(".reasons summary").click()
    assert "bad.png: " in gallery.page.locator(".reasons li").inner_text()
    gallery.page.get_by_role("heading", name="4 pictures").wait_for()
    assert sorted(cards(gallery)) == sorted(PICTURES)


def test_files_that_are_no_pictures_are_left_out_and_counted(gallery):
    files = [
        {"name": "README.md", "mimeType": "text/markdown", "buffer": b"# none"},
        {"name": "one.png", "mimeType": "image/png", "buffer": PICTURES["one.png"]},
    ]
    gallery.page.get_by_label("Add pictures…").set_input_files(files)
    told = "1 of 1: 0 new, 1 known, 0 refused; 1 other files left out"
    gallery.page.get_by_role("status").filter(has_text=told).wait_for()


def test_a_drop_adds(gallery):
    text = base64.b64encode(png(scene(seed=9))).decode()
    gallery.page.evaluate(DROP, ["#gallery", "dropped.png", "image/png", text])
    gallery.page.get_by_role("heading", name="5 pictures").wait_for()
    assert "dropped.png" in cards(gallery)


def test_a_click_finds_what_the_service_finds(gallery, service):
    card(gallery, "one.png").click()
    shown = found(gallery, "More like this")
    id = {p["name"]: p["id"] for p in service.get("/gallery").json()["pictures"]}["one.png"]
    answer = service.post("/gallery/similar", json={"id": id, "limit": 40}).json()["results"]
    assert shown == [picture["name"] for picture in answer]
    assert shown[0] == "again.png"
    assert f"{answer[0]['score']:.3f}" in gallery.page.locator(".card").first.inner_text()


def draw_box(gallery: Playground, share: float) -> dict:
    """Draw a box from near the upper left corner; give what was asked and what was answered."""
    frame = gallery.page.locator(".frame.asked").bounding_box()
    mouse = gallery.page.mouse
    mouse.move(frame["x"] + 8, frame["y"] + 8)  # the very corner is rounded off
    with gallery.page.expect_response("**/gallery/similar") as answer:
        mouse.down()
        for part in (share / 2, share):
            mouse.move(frame["x"] + frame["width"] * part, frame["y"] + frame["height"] * part)
        mouse.up()
    return answer.value.request.post_data_json | answer.value.json()


def test_a_box_finds_the_part_and_shows_where_it_is(gallery):
    card(gallery, "one.png").click()
    found(gallery, "More like this")
    answer = draw_box(gallery, 0.5)
    np.testing.assert_allclose(answer["box"], [256 * 8 / 300] * 2 + [128] * 2, atol=1)
    names = found(gallery, "Where this is")
    assert names == [picture["name"] for picture in answer["results"]]
    assert set(names[:2]) == {"again.png", "pasted.png"}
    for picture in answer["results"][:2]:
        whole = card(gallery, picture["name"]).bounding_box()
        part = card(gallery, picture["name"]).locator(".part").bounding_box()
        drawn = [part["x"] - whole["x"], part["y"] - whole["y"], part["width"], part["height"]]
        left, top, right, bottom = picture["box"]
        scale = whole["width"] / picture["width"]
        wanted = np.array([left, top, right - left, bottom - top]) * scale
        np.testing.assert_allclose(drawn, wanted, atol=3)  # a border of 2 px
    gallery.page.get_by_role("button", name="Whole picture").click()
    assert found(gallery, "More like this")[0] == "again.png"


def test_a_second_box_takes_the_place_of_the_first_and_the_other_button_draws_none(gallery):
    card(gallery, "one.png").click()
    found(gallery, "More like this")
    first = draw_box(gallery, 0.4)["box"]
    second = draw_box(gallery, 0.8)["box"]
    assert second[2] > first[2] + 50
    mark = gallery.page.locator(".frame.asked .part")
    before = mark.bounding_box()
    frame = gallery.page.locator(".frame.asked").bounding_box()
    gallery.page.mouse.move(frame["x"] + 200, frame["y"] + 200)
    gallery.page.mouse.down(button="right")
    gallery.page.mouse.move(frame["x"] + 250, frame["y"] + 250)
    gallery.page.mouse.up(button="right")
    assert mark.bounding_box() == before


def test_a_picture_from_outside_is_searched_with_and_not_kept(gallery):
    file = {"name": "query.png", "mimeType": "image/png", "buffer": png(OTHER)}
    gallery.page.get_by_label("Search with a picture…").set_input_files([file])
    assert found(gallery, "More like this")[0] == "pasted.png"
    gallery.page.get_by_role("button", name="Its middle").click()
    assert found(gallery, "Where this is")
    gallery.page.get_by_role("button", name="All pictures").click()
    gallery.page.get_by_role("heading", name="4 pictures").wait_for()


def test_near_duplicates_stand_together(gallery):
    gallery.page.get_by_label("Near-duplicates from").fill("0.98")
    gallery.page.get_by_role("button", name="Find near-duplicates").click()
    gallery.page.get_by_role("heading", name="1 group of near-duplicates among 4").wait_for()
    assert sorted(cards(gallery)) == ["again.png", "one.png"]


def test_pictures_are_deleted_one_by_one_and_all(gallery):
    card(gallery, "third.png").click()
    found(gallery, "More like this")
    gallery.page.get_by_role("button", name="Delete…").click()
    gallery.page.get_by_role("button", name="Delete this picture: sure?").click()
    gallery.page.get_by_role("heading", name="3 pictures").wait_for()
    gallery.page.get_by_role("button", name="Empty the gallery…").click()
    gallery.page.get_by_role("button", name=re.compile("Delete all 3 pictures")).click()
    gallery.page.get_by_role("heading", name="0 pictures").wait_for()
    for name in ("Find near-duplicates", "Empty the gallery…"):
        assert gallery.page.get_by_role("button", name=name).is_disabled()
