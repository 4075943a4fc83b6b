"""What the page gives to take home: its code runs, its files hold what is shown."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.browser.playground import size_of

ROOT = Path(__file__).parents[2]


def run(command: list[str], folder) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_the_code_gives_what_is_on_the_screen(playground, service, tmp_path, language):
    playground.page.get_by_role("button", name="Flip").click()
    playground.wait_for("b", "coffee-flip.png")
    playground.point("a", 9, click=True)
    playground.choose("Language", language)
    playground.page.get_by_role("button", name="Copy").click()
    playground.page.get_by_role("button", name="Copied").wait_for()
    code = playground.page.evaluate("navigator.clipboard.readText()")
    score = playground.page.locator(".readout strong").inner_text()
    if language == "curl":
        with playground.page.expect_download() as download:
            playground.page.get_by_role("button", name="Save as file").click()
        download.value.save_as(tmp_path / download.value.suggested_filename)
        printed = run(["bash", "-ec", code], tmp_path)
        (match,) = json.loads(printed)["matches"]
        assert f"{match['score']:.3f}" == score
    else:
        printed = run([sys.executable, "-c", code], tmp_path)
        assert abs(float(printed.split()[-1]) - float(score)) < 0.02  # two decoders of one JPEG


@pytest.mark.parametrize("tab", ["Correspondence", "Attention", "Components"])
def test_the_code_of_every_tab_runs(playground, tmp_path, tab):
    playground.tab(tab)
    playground.point("a", 9, click=True)
    printed = run(["bash", "-ec", playground.code("curl")], tmp_path)
    if tab == "Correspondence":
        assert len(json.loads(printed)["matches"]) == playground.lines()
    elif tab == "Attention":
        assert size_of(tmp_path / "attention.png") == (451, 300)
    else:
        assert np.load(tmp_path / "regions.npy").shape == (
            2,
            playground.count,
            playground.info["dim"],
        )
    printed = run([sys.executable, "-c", playground.code("Python")], tmp_path)
    if tab == "Correspondence":
        assert len(printed.splitlines()) == playground.lines()
    elif tab == "Attention":
        assert printed.count("\n") == playground.grid[0]
    elif tab == "Components":
        shares = playground.page.locator(".shares dd").all_inner_texts()
        inside = re.search(r"variance: \[(.*)\]", printed).group(1)
        assert [f"{100 * float(share):.0f} %" for share in inside.split()] == shares
        playground.choose("Show", "Segments (k-means)")
        assert "[[" in run([sys.executable, "-c", playground.code("Python")], tmp_path)


def test_what_is_shown_is_saved(playground, service, tmp_path):
    def save(name: str):
        with playground.page.expect_download() as download:
            playground.page.get_by_role("button", name=name).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        return path

    assert np.load(save("Regions of A, npy")).shape == (1, playground.count, playground.info["dim"])
    assert size_of(save("View, PNG")) == (round(451 * 640 / 300) + 16 + 960, 640)
    playground.tab("Correspondence")
    rows = save("Matches, CSV").read_text().splitlines()
    assert rows[0] == "source,target,score,mutual"
    assert len(rows) == 1 + playground.lines()
