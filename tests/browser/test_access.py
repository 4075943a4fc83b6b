"""For everybody: small screens, keyboards, screen readers, either theme, any model."""

from dataclasses import replace

import pytest

from service.app import create_app
from service.settings import Settings
from tests.browser.playground import Playground
from tests.service.server import serve
from tests.service.tiny_model import HEADS, INFO, L, write_tiny_model

TABS = ["similarity", "correspondence", "attention", "components"]

NAMELESS = """() => [...document.querySelectorAll("button, input, a, [tabindex='0'], fieldset")]
    .filter((element) => element.checkVisibility())
    .filter((element) => !(
        element.ariaLabel || element.textContent.trim() ||
        element.labels?.[0]?.textContent.trim() || element.labels?.[0]?.title))
    .map((element) => element.outerHTML)"""


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.parametrize("width", [360, 768])
def test_nothing_sticks_out_of_a_small_screen(playground, tab, width):
    playground.page.set_viewport_size({"width": width, "height": 740})
    playground.open(tab)
    widths = "[document.documentElement.scrollWidth, window.innerWidth]"
    scroll, inner = playground.page.evaluate(widths)
    assert scroll == inner == width
    outside = playground.page.evaluate(
        """() => [...document.querySelectorAll("main button, main input, main .frame, aside")]
            .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
            .map((e) => e.outerHTML)"""
    )
    assert outside == []


@pytest.mark.parametrize("tab", TABS)
def test_every_control_has_a_name(playground, tab):
    playground.open(tab)
    assert playground.page.evaluate(NAMELESS) == []


def test_everything_is_reached_by_the_tab_key(playground):
    playground.page.locator("body").focus()
    reached = set()
    for _ in range(40):
        playground.page.keyboard.press("Tab")
        reached.add(
            playground.page.evaluate(
                "document.activeElement.id || document.activeElement.ariaLabel"
                " || document.activeElement.textContent.trim() || document.activeElement.name"
            )
        )
    assert {"theme", "tab-similarity", "Picture A", "Picture B", "Flip", "copy", "fit"} <= reached


def test_arrow_keys_go_from_tab_to_tab(playground):
    playground.page.locator("#tab-similarity").focus()
    for key, name in (
        ("ArrowRight", "Correspondence"),
        ("ArrowRight", "Attention"),
        ("ArrowLeft", "Correspondence"),
        ("ArrowLeft", "Similarity"),
        ("ArrowLeft", "Components"),
    ):
        playground.page.keyboard.press(key)
        assert playground.page.evaluate("document.activeElement.textContent") == name
        selected = playground.page.get_by_role("tab", selected=True)
        assert selected.all_inner_texts() == [name]


def paper(page) -> tuple[int, ...]:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return tuple(int(part) for part in colour.strip("rgb()").split(","))


def test_it_is_light_or_dark_as_the_system_until_asked(playground):
    page = playground.page
    page.emulate_media(color_scheme="dark")
    assert max(paper(page)) < 60
    page.emulate_media(color_scheme="light")
    assert min(paper(page)) > 220
    page.get_by_role("button", name="Switch between light and dark").click()
    assert max(paper(page)) < 60
    page.reload()
    page.wait_for_selector("body.ready")
    assert max(paper(page)) < 60  # it is remembered


def test_nothing_moves_where_motion_is_not_wanted(playground):
    playground.page.emulate_media(reduced_motion="reduce")
    playground.tab("Correspondence")
    lasting = playground.page.evaluate(
        "[...document.querySelectorAll('*')].map((e) => getComputedStyle(e))"
        ".filter((s) => s.animationName !== 'none' || parseFloat(s.transitionDuration) > 0).length"
    )
    assert lasting == 0


def test_a_model_without_attention_has_no_attention_tab_and_says_why(page, tmp_path):
    outputs = INFO.outputs | {"attention": (0, L, L)}
    info = replace(INFO, arch="resnet_50", outputs=outputs)
    model = write_tiny_model(tmp_path / "resnet.onnx", info.to_json(), num_heads=0)
    assert HEADS > 0
    with serve(create_app(Settings(model=model, engine="onnxruntime", device="cpu"))) as client:
        playground = Playground(page, client)
        playground.open("attention")  # an address that leads nowhere here
        names = page.get_by_role("tab").all_inner_texts()
        assert names == ["Similarity", "Correspondence", "Components"]
        assert page.get_by_role("tab", selected=True).all_inner_texts() == ["Similarity"]
        assert "resnet_50 has no attention" in page.locator("#missing").inner_text()
        page.goto("about:blank")


def test_where_a_key_is_asked_for_the_page_asks_for_it(page, tmp_path):
    key = "a key of sixteen letters"
    model = write_tiny_model(tmp_path / "tiny.onnx")
    settings = Settings(model=model, engine="onnxruntime", device="cpu", api_keys=(key,))
    page.expected_complaints = ("401",)  # the browser reports every refused call
    with serve(create_app(settings)) as client:
        page.goto(str(client.base_url))
        for tried in ("not the one", key):
            page.get_by_label("This service asks for a key").fill(tried)
            page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("body.ready")
        assert page.locator("#model").inner_text() == "tiny"
        code = page.locator("#code:not([aria-busy])").inner_text()
        assert 'curl -H "X-API-Key: $ESVIT_KEY"' in code
        assert key not in page.content()
        page.reload()
        page.wait_for_selector("body.ready")
        page.goto("about:blank")
