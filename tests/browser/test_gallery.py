"""The gallery's tab in a real browser: pictures in, found by one or by a part, gone."""

import base64

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
