"""The command line of a pretraining run: a recipe or a kept config, then flags that override it.

Flags are made from the config's fields by tyro. What cannot be understood is refused in one line.
"""

import contextlib
import io
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import tyro

from trainer.config import PretrainConfig
from trainer.config_file import read_config
from trainer.recipes import RECIPES

PROG = "python -m trainer.pretrain"

_ADVICE = ("For full helptext", "Argument helptext")
_DETAIL = " " * 9
"""What explains a flag stands at least so far to the right."""


def parse(argv: list[str]) -> PretrainConfig:
    """Read a recipe's name or `--config FILE`, then flags.

    Raises:
        SystemExit: after help, or after one line that says what is wrong.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _read(argv)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error
    except SystemExit as stop:
        reasons = [str(error) for error in _causes(stop) if _is_ours(error)]
        if stop.code:
            sys.stderr.write(f"{reasons[0] if reasons else in_one_line(said.getvalue())}\n")
        raise


def _read(argv: list[str]) -> PretrainConfig:
    """Let tyro read the arguments over what they begin with."""
    if argv[:1] == ["--config"]:
        if len(argv) < 2:
            raise ValueError("--config wants the file of a config, as RUN/config.json")
        default = read_config(Path(argv[1]))
        return tyro.cli(PretrainConfig, default=default, args=argv[2:], prog=PROG)
    if argv and not argv[0].startswith("-") and argv[0] not in RECIPES:
        raise ValueError(f"recipe is {argv[0]!r}, expected one of {', '.join(RECIPES)}")
    recipes = {
        name: (str(recipe.__doc__), recipe(tyro.MISSING, tyro.MISSING))
        for name, recipe in RECIPES.items()
    }
    return tyro.extras.overridable_config_cli(recipes, args=argv, prog=PROG)


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
