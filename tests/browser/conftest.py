"""The shipped model behind the page, and a page in a real browser that must not complain."""

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from service.app import create_app
from service.settings import Settings
from tests.browser import chromium
from tests.browser.playground import Playground
from tests.service.server import serve


def pytest_terminal_summary(terminalreporter):
    """Say it last and loudly if nothing of this was tested."""
    reports = terminalreporter.stats.get("skipped", [])
    if any("NO BROWSER" in str(report.longrepr) for report in reports):
        terminalreporter.write(chromium.MISSING, red=True, bold=True)


@pytest.fixture(scope="session")
def service() -> Iterator[httpx.Client]:
    """The model that comes along, in float32 as its answers are compared number by number."""
    with serve(create_app(Settings(engine="onnxruntime", device="cpu", threads=2))) as client:
        yield client


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        executable = chromium.find(playwright)
        if executable is None:
            pytest.skip(chromium.MISSING)
        browser = chromium.launch(playwright, executable)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails its test on any complaint in the console and any request elsewhere."""
    context = browser.new_context(viewport={"width": 1440, "height": 960}, accept_downloads=True)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(150_000)  # the machine may be busy
    complaints, addresses = [], []
    page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    yield page
    context.close()
    home = ("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:", "about:")
    assert [address for address in addresses if not address.startswith(home)] == []
    expected = ("willReadFrequently", *getattr(page, "expected_complaints", ()))  # we read, not it
    assert [c for c in complaints if not any(word in c for word in expected)] == []


@pytest.fixture
def playground(page: Page, service: httpx.Client) -> Playground:
    return Playground(page, service).open()
