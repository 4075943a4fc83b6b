"""What README and docs/ point at is there, and what they show is of the model that comes along."""

import re
from pathlib import Path

import pytest

from service.model_file import read_model_info
from service.settings import DEFAULT_MODEL, Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED_FILE = r"(?<![\w./-])(?:esvit|trainer|service|docker|tests|benchmarks|docs)/[\w./-]*\w"


def links(page):
    """Targets of a page's links and pictures that lie in this project."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page):
    """What can stand behind # for a page: its headings, as they are told from their words."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_there(page, target):
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    return file.exists() and (not anchor or anchor in anchors(file))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert [target for target in links(page) if not is_there(page, target)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_are_there(page):
    named = set(re.findall(NAMED_FILE, page.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_page_stands_in_the_index():
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / target).resolve() for target in links(index)}
    assert set((ROOT / "docs").rglob("*.md")) - {index} - listed == set()


def test_every_picture_is_shown():
    shown = {(page.parent / target).resolve() for page in PAGES for target in links(page)}
    assert set((ROOT / "docs").rglob("*.png")) - shown == set()


def test_answers_are_of_the_model_that_comes_along():
    info = read_model_info(DEFAULT_MODEL)
    text = "\n".join(page.read_text() for page in PAGES)
    names = re.findall(r'"model": ?"([^"]+)"', text) + re.findall(r"/v2/models/(swin[^/]+)/", text)
    assert set(names) == {info.name}
    grids = set(re.findall(r'"grid": ?\[(\d+), ?(\d+)\]', text))
    assert grids == {tuple(str(side) for side in info.grid)}


def test_every_setting_named_in_a_page_is_one():
    known = {f"ESVIT_{name.upper()}" for name in Settings.model_fields} | {"ESVIT_KERNELS"}
    of_compose = set(re.findall(r"\$\{(ESVIT_[A-Z_]+)", (ROOT / "compose.yaml").read_text()))
    for page in PAGES:
        assert set(re.findall(r"ESVIT_[A-Z_]+[A-Z]", page.read_text())) <= known | of_compose
