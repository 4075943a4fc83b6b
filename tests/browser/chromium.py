"""The browser that the page is tested in: found, installed where it can be, started.

`python -m tests.browser.chromium` makes sure that there is one; `make test` calls it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Nothing of the browser's own goes to the network."""

MISSING = """
############################################################################################
NO BROWSER: the playground is NOT TESTED. Install Chromium (apt-get install chromium, or
python -m playwright install chromium) and run the tests again.
############################################################################################
"""


def find(playwright: Playwright) -> str | None:
    """Give the path of the system's Chromium, else of Playwright's own, None where neither is."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def launch(playwright: Playwright, executable: str) -> Browser:
    """Start the browser; root has no sandbox."""
    sandbox = () if os.geteuid() else ("--no-sandbox",)
    return playwright.chromium.launch(executable_path=executable, args=[*FLAGS, *sandbox])


def install() -> None:
    """Install Chromium by the system's packages where that is allowed, else by Playwright."""
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        packages = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        if subprocess.run(packages, check=False).returncode == 0:
            return
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)


def main() -> None:
    """Install a browser where there is none, and say so loudly where that fails."""
    with sync_playwright() as playwright:
        if find(playwright):
            return
        install()
        if not find(playwright):
            sys.stderr.write(MISSING)


if __name__ == "__main__":
    main()
