"""Command: make the picture of the playground that its documentation shows."""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from service.app import create_app
from service.settings import Settings
from tests.browser import chromium
from tests.browser.playground import Playground
from tests.service.server import serve


def main(out: str) -> None:
    """Open the playground with the model that comes along, pin a region, and write a PNG."""
    with serve(create_app(Settings())) as service, sync_playwright() as playwright:
        executable = chromium.find(playwright)
        if executable is None:
            sys.exit(chromium.MISSING)
        browser = chromium.launch(playwright, executable)
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        playground = Playground(page, service).open()
        playground.point("a", playground.count // 3, click=True)
        page.locator("#code:not(:empty)").wait_for()
        data = page.screenshot()
        browser.close()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    # A palette is a third of the bytes; dithered, it is hardly to be seen.
    palette = picture.quantize(256)
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(Path(out))


if __name__ == "__main__":
    main(sys.argv[1])
