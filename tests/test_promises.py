"""Every promise of docs/operations.md names tests, and those tests are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "operations.md").read_text()
PROMISES = re.findall(r"^\| (.+?) \| (.+?) \|$", TEXT.partition("## What is promised")[2], re.M)[1:]


def functions_in(path):
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("promise", "proofs"), PROMISES)
def test_a_promise_has_its_tests(promise, proofs):
    named = re.findall(r"`(.+?)`|\]\((.+?)\)", proofs)
    assert named
    for code, page in named:
        path, _, name = code.partition("::")
        if page:
            assert (ROOT / "docs" / page).is_file()
        elif code.startswith("make "):
            makefile = (ROOT / "Makefile").read_text()
            assert re.search(rf"^{code.removeprefix('make ')}:", makefile, re.M)
        else:
            assert (ROOT / path).is_file()
            assert not name or name in functions_in(path)


def test_there_are_promises():
    assert len(PROMISES) > 10
