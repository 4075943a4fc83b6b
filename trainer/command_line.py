"""The commands' arguments: flags are made from configs by tyro, refusals are one line.

A pretraining run begins with a recipe or a kept config, then come flags that override it.
"""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import tyro

from trainer.config import PretrainConfig
from trainer.config_file import read_config
from trainer.recipes import RECIPES

Config = TypeVar("Config")

PROG = "python -m trainer.pretrain"
DESCRIPTION = (
    "Train a network from images alone: give a recipe, or --config RUN/config.json for that of "
    "another run, then flags."
)

_ADVICE = ("For full helptext", "Argument helptext")
_DETAIL = " " * 9
"""What explains a flag stands at least so far to the right."""


def parse(argv: list[str]) -> PretrainConfig:
    """Read a run's recipe or `--config FILE`, then flags; raises as `read_arguments`."""
    return read_arguments(lambda: _read(argv))


def read_arguments(read: Callable[[], Config]) -> Config:
    """Let tyro read a command's arguments, and say in one line what is wrong with them.

    Raises:
        SystemExit: after help, or after that line.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return read()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error
    except SystemExit as stop:
        reasons = [str(error) for error in _causes(stop) if _is_ours(error)]
        if stop.code:
            sys.stderr.write(f"{reasons[0] if reasons else in_one_line(said.getvalue())}\n")
        _flush_help()
        raise


def _read(argv: list[str]) -> PretrainConfig:
    """Let tyro read the arguments over what they begin with."""
    kept, flags = _take_config(argv)
    if kept is not None:
        if flags and flags[0] in RECIPES:
            raise ValueError(f"--config stands in the place of a recipe; given is {flags[0]}, too")
        return tyro.cli(PretrainConfig, default=read_config(kept), args=flags, prog=PROG)
    if argv and not argv[0].startswith("-") and argv[0] not in RECIPES:
        raise ValueError(f"recipe is {argv[0]!r}, expected one of {', '.join(RECIPES)}")
    recipes = {
        name: (str(recipe.__doc__), recipe(tyro.MISSING, tyro.MISSING))
        for name, recipe in RECIPES.items()
    }
    return tyro.extras.overridable_config_cli(
        recipes, args=argv, prog=PROG, description=DESCRIPTION
    )


def _take_config(argv: list[str]) -> tuple[Path | None, list[str]]:
    """Take `--config FILE` or `--config=FILE` out of the arguments, wherever it stands.

    Raises:
        ValueError: if it names no file.
    """
    for place, word in enumerate(argv):
        name, equals, file = word.partition("=")
        if name != "--config":
            continue
        rest = argv[place + 1 :]
        if not equals:
            file, *rest = rest or [""]
        if not file:
            raise ValueError("--config wants the file of a config, as RUN/config.json")
        return Path(file), argv[:place] + rest
    return None, argv


def in_one_line(box: str) -> str:
    """Give what tyro says in a box, its advice and explanations left out."""
    sections: list[list[str]] = []  # what stands before the first rule is a title
    for row in box.splitlines():
        line = row.strip("│╭╰╮╯")
        words = line.strip()
        if words.startswith("─") or set(words) == {"-"}:
            sections.append([])
        elif sections and words and not line.startswith(_DETAIL):
            sections[-1].append(words)
    told = [" ".join(lines) for lines in sections if lines and not lines[0].startswith(_ADVICE)]
    return "; ".join(told) or box.strip()


def _flush_help() -> None:
    """Bring help to its reader, who may have gone after the first lines."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Follow an error to those during whose handling it came up."""
    while error.__context__ is not None:
        error = error.__context__
        yield error


def _is_ours(error: BaseException) -> bool:
    """Tell a refusal by a config, which says all by itself, from one by the parser."""
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals["__name__"].partition(".")[0]
    return isinstance(error, ValueError) and package in ("trainer", "esvit")
