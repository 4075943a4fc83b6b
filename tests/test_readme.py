import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PACKAGES = ("esvit", "trainer", "service", "benchmarks")


def listed_files():
    """Every file that the README's list names, with the folders that its indentation puts it in."""
    block = re.search(r"## Files\n\n```\n(.*?)```", README, re.DOTALL).group(1)
    folders, files = [], set()
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            del folders[depth:]
            if name.endswith("/"):
                folders.append(name)
            else:
                files.add("".join(folders) + name)
    return files


def commands():
    """Every line that the README tells to type."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def test_every_source_file_stands_in_the_list():
    sources = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sources - listed_files() == set()


def test_every_listed_file_is_there():
    assert [name for name in listed_files() if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("command", commands())
def test_commands_are_whole(command):
    words = shlex.split(command.partition("#")[0])
    assert words
    for word in words:
        if word.startswith(("@service/", "file=@", "source=@", "target=@")):
            assert (ROOT / word.partition("@")[2]).is_file()


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ .*)make ([a-z-]+)", README)) <= targets


def test_every_setting_named_is_one():
    from service.settings import Settings

    known = {f"ESVIT_{name.upper()}" for name in Settings.model_fields}
    of_compose = set(re.findall(r"\$\{(ESVIT_[A-Z_]+)", (ROOT / "compose.yaml").read_text()))
    assert set(re.findall(r"ESVIT_[A-Z_]+[A-Z]", README)) <= known | of_compose
