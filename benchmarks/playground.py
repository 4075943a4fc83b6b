"""What the playground costs a browser while the pointer goes from region to region.

    python -m benchmarks.playground

Every move leads to another region of picture A, so that everything is drawn anew. Milliseconds of
processor time of the page's own thread, so that what else runs on the machine does not count:
`script` is what the page computes for a move, `thread` that and what the browser makes of it
(styles, layout, painting). Where both stay below 16.7, a screen of 60 Hz shows every move.
`interval` is the time from frame to frame as they came: a browser without a graphics card also
composes them on the processor, and shares it with whatever else runs.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import CDPSession, sync_playwright

from service.app import create_app
from service.settings import DEFAULT_MODEL, Settings
from tests.browser import chromium
from tests.browser.playground import Playground
from tests.service.server import serve

TABS = ("Similarity", "Correspondence", "Attention", "Components")

WARM_UP = 20
"""Moves that are not counted."""

STRIDE = 37
"""Regions from one move to the next; prime, so that every region has its turn."""

COUNT_FRAMES = """() => {
    window.stamps = [];
    const count = (now) => {
        window.stamps.push(now);
        requestAnimationFrame(count);
    };
    requestAnimationFrame(count);
}"""

DRAWN = "() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))"
"""Waits until the browser is done with a frame."""


def main() -> None:
    """Go over a picture in each tab, and say what that cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a model file")
    parser.add_argument("--moves", type=int, default=100, help="of the pointer in each tab")
    asked = parser.parse_args()
    settings = Settings(model=asked.model)
    with serve(create_app(settings)) as service, sync_playwright() as playwright:
        executable = chromium.find(playwright)
        if executable is None:
            sys.exit(chromium.MISSING)
        browser = chromium.launch(playwright, executable)
        page = browser.new_page(viewport={"width": 1440, "height": 960})
        page.set_default_timeout(300_000)
        playground = Playground(page, service).open()
        page.evaluate(COUNT_FRAMES)
        print(f"{playground.count} regions a picture, Chromium {browser.version}; ms a move:")
        for tab in TABS:
            playground.tab(tab)
            print(f"{tab}: {measure(playground, asked.moves)}")
        browser.close()


def measure(playground: Playground, num_moves: int) -> str:
    """Move the pointer to so many regions of picture A, and say what a move cost."""
    page = playground.page
    box = playground.frame("a").bounding_box()
    assert box is not None
    meter = page.context.new_cdp_session(page)
    meter.send("Performance.enable", {"timeDomain": "threadTicks"})
    rows, columns = playground.grid
    spent = []
    for number in range(WARM_UP + num_moves):
        if number == WARM_UP:
            page.evaluate("() => (window.stamps = [])")
        row, column = divmod(STRIDE * number % playground.count, columns)
        x = box["x"] + box["width"] * (column + 0.5) / columns
        page.mouse.move(x, box["y"] + box["height"] * (row + 0.5) / rows)
        page.evaluate(DRAWN)
        spent.append(spent_s(meter))
    interval = np.diff(np.array(page.evaluate("() => window.stamps"), np.float64))
    meter.detach()
    script, thread = 1e3 * np.diff(spent[WARM_UP - 1 :], axis=0).T
    parts = {"script": script, "thread": thread, "interval": interval}
    return ", ".join(f"{name} {spread(values)}" for name, values in parts.items())


def spent_s(meter: CDPSession) -> tuple[float, float]:
    """Give the seconds that the page's thread has computed: scripts, and everything."""
    metrics = meter.send("Performance.getMetrics")["metrics"]
    seconds = {metric["name"]: metric["value"] for metric in metrics}
    return seconds["ScriptDuration"], seconds["TaskDuration"]


def spread(values: NDArray[np.float64]) -> str:
    """Give the median, and what 95 % stay within."""
    return f"{np.median(values):.1f} (95 % within {np.percentile(values, 95):.1f})"


if __name__ == "__main__":
    main()
