"""The page as its user sees it: points, reads, drops."""

import base64
import io
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page

Side = Literal["a", "b"]

DROP = """([selector, name, type, text]) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    const event = { bubbles: true, cancelable: true, dataTransfer: transfer };
    document.querySelector(selector).dispatchEvent(new DragEvent("drop", event));
}"""


class Playground:
    """The page of a service, whatever its model."""

    def __init__(self, page: Page, service: httpx.Client) -> None:
        self.page = page
        self.address = str(service.base_url)
        self.info = service.get("/info").json()
        self.grid: tuple[int, int] = tuple(self.info["grid"])
        self.count = self.grid[0] * self.grid[1]

    def open(self, tab: str = "similarity") -> "Playground":
        """Open the page anew, at a tab, and wait until both pictures are there."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}/#{tab}")
        self.page.wait_for_selector("body.ready")
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until no picture is under way and what changed is drawn."""
        self.page.wait_for_selector("figure[aria-busy]", state="detached")
        self.page.evaluate("() => new Promise((r) => requestAnimationFrame(() => setTimeout(r)))")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()
        self.settle()

    def frame(self, side: Side) -> Locator:
        return self.page.locator(f"#{side} .frame")

    def point(self, side: Side, region: int, *, click: bool = False) -> None:
        """Move the pointer to the middle of a region of a picture that is wholly seen."""
        row, column = divmod(region, self.grid[1])
        box = self.frame(side).bounding_box()
        x = box["x"] + box["width"] * (column + 0.5) / self.grid[1]
        y = box["y"] + box["height"] * (row + 0.5) / self.grid[0]
        self.page.mouse.move(x, y)
        if click:
            self.page.mouse.click(x, y)
        self.settle()

    def pixels(self, side: Side) -> np.ndarray:
        """Read what is painted over a picture: (rows, columns, 4)."""
        size, values = self.page.evaluate(
            """(selector) => {
                const canvas = document.querySelector(selector);
                const { width, height } = canvas;
                const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
                return [[height, width], [...data]];
            }""",
            f"#{side} canvas",
        )
        return np.array(values, np.uint8).reshape(*size, 4)

    def heat(self, side: Side) -> np.ndarray:
        """Read the heat of each cell, by the green of viridis, which only rises."""
        return self.pixels(side)[..., 1].astype(int)

    def choose(self, group: str, option: str) -> None:
        """Choose among a few, in what is shown."""
        self.page.get_by_role("group", name=group).get_by_label(option, exact=True).check()
        self.settle()

    def drop(self, side: Side, name: str, data: bytes, kind: str = "image/png") -> None:
        """Drop a file on a picture."""
        text = base64.b64encode(data).decode()
        self.page.evaluate(DROP, [f"#{side} .frame", name, kind, text])
        self.settle()

    def press(self, side: Side, *keys: str) -> None:
        self.frame(side).focus()
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def lines(self) -> int:
        return self.page.locator("#lines .line").count()

    def facts(self, side: Side) -> str:
        return self.page.locator(f"#{side} .facts").inner_text()

    def wait_for(self, side: Side, facts: str) -> None:
        """Wait until the line below a picture says so."""
        self.page.locator(f"#{side} .facts", has_text=facts).wait_for()
        self.settle()

    def said(self) -> str:
        """Wait until a screen reader is told something that follows a change, and give it."""
        self.page.wait_for_timeout(400)
        return self.page.locator("#live").inner_text()

    def code(self, language: str) -> str:
        self.choose("Language", language)
        self.page.wait_for_selector("#code:not([aria-busy])")
        return self.page.locator("#code").inner_text()


def size_of(file: bytes | Path) -> tuple[int, int]:
    """Read width and height of a picture."""
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        return image.size
