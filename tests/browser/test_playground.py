"""The page in a real browser: what is on the screen is what the service answers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.parity import PHOTOGRAPHS
from tests.browser.playground import Playground, size_of
from tests.service.pictures import jpeg, png, scene

ROOT = Path(__file__).parents[2]

CAT, COFFEE, _ = (path.read_bytes() for path in PHOTOGRAPHS)


def correspond(service, source: bytes, target: bytes, **options) -> list[dict]:
    """Ask the service what the page computes."""
    fields = {name: json.dumps(value) for name, value in options.items()} | {"fit": "stretch"}
    files = {"source": source, "target": target}
    return service.post("/correspond", files=files, data=fields).json()["matches"]


def region(point, size, grid) -> int:
    """Give the region of a squeezed picture that a point in pixels lies in."""
    column, row = np.floor(np.array(point) / size * grid[::-1]).astype(int)
    return int(row * grid[1] + column)


def test_it_opens_alive(playground):
    assert "cat.jpg" in playground.facts("a")
    assert "coffee.jpg" in playground.facts("b")
    assert playground.page.locator("#model").inner_text() == playground.info["model"]
    is_untrained = playground.info["training"] is None
    assert playground.page.locator("#untrained").is_visible() == is_untrained
    for side in "ab":
        assert playground.pixels(side)[..., 3].min() == 255
    assert playground.code("curl").startswith("curl ")


@pytest.mark.parametrize("side", ["a", "b"])
def test_the_hottest_cell_is_the_services_answer(playground, service, side):
    other = "b" if side == "a" else "a"
    asked, searched = (CAT, COFFEE) if side == "a" else (COFFEE, CAT)
    playground.choose("Regions", "Squares")
    answers = correspond(service, asked, searched)
    assert len(answers) == playground.count
    for match in answers[::4]:
        playground.point(side, match["query"])
        heat = playground.heat(other)
        best = region(match["target"], size_of(searched), playground.grid)
        assert heat.flat[best] == heat.max()
        readout = playground.page.locator(".readout").inner_text()
        assert f"{match['score']:.3f}" in readout
        assert ("mutual" in readout) == match["mutual"]


def test_the_pointer_asks_until_a_click_pins(playground):
    playground.point("a", 5)
    first = playground.pixels("b")
    playground.point("a", 10)
    second = playground.pixels("b")
    assert (first != second).any()
    playground.point("a", 5, click=True)
    playground.point("a", 10)
    np.testing.assert_array_equal(playground.pixels("b"), first)
    playground.page.keyboard.press("Escape")
    playground.point("a", 10)
    np.testing.assert_array_equal(playground.pixels("b"), second)


def test_arrow_keys_move_and_words_follow(playground):
    row, column = (count // 2 + 1 for count in playground.grid)  # the middle, counted from one
    playground.press("a", "ArrowRight", "ArrowDown")
    said = playground.said()
    assert said.startswith(f"A, row {row + 1}, column {column + 1}. Best in B: row ")
    playground.press("a", *["ArrowLeft"] * 9)
    assert f"A, row {row + 1}, column 1." in playground.said()
    playground.press("b", "ArrowUp")
    assert playground.said().startswith(f"B, row {row - 1}, column {column}. Best in A: row ")
    playground.press("b", "Enter")
    playground.point("a", 0)
    assert playground.said().startswith(f"B, row {row - 1}, column {column}.")


@pytest.mark.parametrize("mutual", [True, False])
def test_lines_are_the_services_matches(playground, service, mutual):
    playground.tab("Correspondence")
    playground.page.get_by_label("Mutual matches only").set_checked(mutual)
    playground.page.get_by_label("Lines").fill(str(playground.count))
    playground.settle()
    answers = correspond(service, CAT, COFFEE, mutual_only=mutual, top_k=playground.count)
    assert playground.lines() == len(answers)
    shown = playground.page.locator(".ranking.long li b").all_inner_texts()
    np.testing.assert_allclose(
        [float(text) for text in shown], [match["score"] for match in answers], atol=1.1e-3
    )


def test_as_many_lines_as_the_slider_says(playground):
    playground.tab("Correspondence")
    playground.page.get_by_label("Mutual matches only").uncheck()
    slider = playground.page.get_by_label("Lines")
    for wanted in (1, 7, 12):
        slider.fill(str(wanted))
        playground.settle()
        assert playground.lines() == wanted
    slider.focus()
    steps = {"ArrowRight": 13, "ArrowLeft": 12, "Home": 1, "End": playground.count}
    for key, wanted in steps.items():
        playground.page.keyboard.press(key)
        playground.settle()
        assert playground.lines() == wanted
        assert slider.get_attribute("aria-valuetext") == str(wanted)
    box = slider.bounding_box()
    playground.page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    playground.settle()
    assert playground.lines() == 1


def test_the_least_score_leaves_out_what_is_below(playground, service):
    playground.tab("Correspondence")
    playground.page.get_by_label("Mutual matches only").uncheck()
    playground.page.get_by_label("Lines").fill(str(playground.count))
    scores = sorted(match["score"] for match in correspond(service, CAT, COFFEE))
    least = round(scores[playground.count // 2] * 200) / 200
    playground.page.get_by_label("Least score").fill(f"{least:.3f}")
    playground.settle()
    assert playground.lines() == sum(score >= least for score in scores)


def test_pointing_at_a_line_lights_both_regions(playground):
    playground.tab("Correspondence")
    playground.page.locator(".ranking.long li").first.hover()
    playground.settle()
    assert playground.page.locator("#lines .near").count() == 1
    assert playground.page.locator("#a .marks rect.query:not(.halo)").count() == 1
    assert playground.page.locator("#b .marks rect.best:not(.halo)").count() == 1


def test_a_mirrored_copy_is_found_again_region_by_region(playground, service):
    playground.page.get_by_role("button", name="Same as A").click()
    playground.settle()
    playground.tab("Correspondence")
    playground.page.get_by_label("Lines").fill(str(playground.count))
    playground.settle()
    assert playground.lines() == playground.count  # every region finds itself
    playground.page.get_by_role("button", name="Flip").click()
    playground.wait_for("b", "cat-flip.png")
    with Image.open(PHOTOGRAPHS[0]) as image:
        mirrored = png(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    answers = correspond(service, CAT, mirrored, mutual_only=True, top_k=playground.count)
    assert abs(playground.lines() - len(answers)) <= 1  # two decoders of one JPEG


def test_changes_are_made_one_after_another_and_undone(playground):
    def click(name: str, facts: str) -> None:
        playground.page.get_by_role("button", name=name).click()
        playground.wait_for("b", facts)

    click("Rotate", "coffee-turn.png · 400 x 600 px")
    click("Flip", "coffee-turn-flip.png · 400 x 600 px")
    playground.page.get_by_role("button", name="Crop").click()
    playground.page.keyboard.press("Enter")
    playground.wait_for("b", "coffee-turn-flip-crop.png · 280 x 420 px")
    click("Undo all", "coffee.jpg · 600 x 400 px")


def test_changes_asked_for_while_one_is_under_way_are_all_made(playground):
    for name in ("Flip", "Rotate", "Rotate"):
        playground.page.get_by_role("button", name=name).dispatch_event("click")  # waits for none
    playground.wait_for("b", "coffee-flip-turn.png · 600 x 400 px")


def test_a_crop_is_drawn_by_the_pointer(playground):
    playground.page.get_by_role("button", name="Crop").click()
    box = playground.frame("b").bounding_box()
    mouse = playground.page.mouse
    mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    mouse.down()
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 3 / 4, steps=3)
    mouse.up()
    playground.wait_for("b", "coffee-crop.png")
    width, height = map(int, re.search(r"(\d+) x (\d+) px", playground.facts("b")).groups())
    assert abs(width - 150) <= 2
    assert abs(height - 200) <= 2


@pytest.mark.parametrize("head", ["mean", "3"])
def test_attention_is_the_services(playground, service, head):
    playground.tab("Attention")
    playground.choose("Regions", "Squares")
    assert (
        playground.page.locator(".heads canvas").count()
        == playground.info["outputs"]["attention"][0]
    )
    playground.page.locator(f".heads input[value='{head}']").check(force=True)
    playground.point("a", 9)
    playground.page.wait_for_selector("#a rect.query")
    (rows, columns), (width, height) = playground.grid, size_of(CAT)
    query = [(9 % columns + 0.5) * width / columns, (9 // columns + 0.5) * height / rows]
    answer = service.post(
        "/attention",
        files={"file": CAT},
        data={"fit": "stretch", "head": head, "query": json.dumps(query)},
    ).json()
    weights = np.array(answer["images"][0]["attention"][0])
    heat = playground.heat("a")
    assert heat.flat[weights.argmax()] == heat.max()
    assert np.corrcoef(heat.ravel(), weights.ravel())[0, 1] > 0.95  # green is not quite linear


def test_components_colour_and_part_both_pictures(playground):
    playground.tab("Components")
    playground.choose("Regions", "Squares")
    assert playground.page.locator(".shares dd").count() == 3
    colours = np.concatenate([playground.pixels(side).reshape(-1, 4) for side in "ab"])
    assert (colours[:, :3].min(0) == 0).all()  # each component fills its channel,
    assert (colours[:, :3].max(0) == 255).all()  # over both pictures together
    playground.choose("Show", "Segments (k-means)")
    for k in (2, 5):
        playground.page.get_by_label("Segments", exact=True).fill(str(k))
        playground.settle()
        both = np.concatenate([playground.pixels(side).reshape(-1, 4) for side in "ab"])
        assert len(np.unique(both, axis=0)) == k


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_dropped_picture_is_taken(playground, kind):
    data = png(scene(90, 60)) if kind == "png" else jpeg(scene(90, 60))
    playground.drop("b", f"mine.{kind}", data, f"image/{kind}")
    assert f"mine.{kind} · 90 x 60 px" in playground.facts("b")
    assert playground.page.locator("#b .refused").is_hidden()


def test_a_picture_is_opened_by_the_file_button(playground, tmp_path):
    (tmp_path / "one.png").write_bytes(png(scene(80, 50)))
    playground.page.get_by_label("Open a file as picture A").set_input_files(tmp_path / "one.png")
    playground.wait_for("a", "one.png · 80 x 50 px")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("notes.txt", b"no picture at all", "notes.txt: "),
        ("old.gif", b"GIF89a" + bytes(40), "GIF"),
        ("cut.png", png(scene(200, 200))[:900], "cut.png: "),
    ],
)
def test_a_refused_file_says_why_and_leaves_the_picture(page, playground, name, data, reason):
    page.expected_complaints = ("415", "422")  # the browser reports every refused call
    playground.drop("b", name, data)
    notice = playground.page.locator("#b .refused")
    notice.wait_for()
    assert reason in notice.inner_text()
    assert len(notice.inner_text()) < 200
    assert "coffee.jpg" in playground.facts("b")
    playground.drop("b", "good.png", png(scene(90, 60)))
    assert notice.is_hidden()


def test_a_file_that_is_too_large_is_not_even_sent(playground):
    playground.page.evaluate("""() => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(21_000_000)], "huge.png"));
        const event = { bubbles: true, cancelable: true, dataTransfer: transfer };
        document.querySelector("#a .frame").dispatchEvent(new DragEvent("drop", event));
    }""")
    playground.settle()
    text = playground.page.locator("#a .refused").inner_text()
    assert text == "huge.png: The file has 21.0 MB; at most 20.0 MB are accepted."


def test_another_fit_is_computed_anew(playground):
    before = playground.pixels("a")
    playground.choose("The model sees", "Cropped")
    playground.page.wait_for_function(
        "document.querySelector('#a canvas').style.left.startsWith('2')"
    )
    playground.settle()
    assert (playground.pixels("a") != before).any()
    assert "fit=crop" in playground.code("curl")


def test_a_tab_has_an_address(playground: Playground):
    playground.open("components")
    assert playground.page.get_by_role("tab", name="Components").get_attribute("aria-selected")
    playground.tab("Attention")
    assert playground.page.url.endswith("#attention")
