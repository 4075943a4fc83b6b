from pathlib import Path

import pytest

from trainer.command_line import in_one_line, parse
from trainer.recipes import RECIPES

OK = ("smoke", "--data.path", "images", "--out", "run")


def refusal(argv, capsys):
    """Give the one line with which arguments are refused."""
    with pytest.raises(SystemExit) as stop:
        parse(list(argv))
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    return line


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_by_its_name(name):
    arguments = [name, "--data.path", "images", "--out", "run"]
    assert parse(arguments) == RECIPES[name]("images", Path("run"))


def test_flags_override_a_recipe():
    config = parse([*OK, "--optim.batch", "12", "--crops.local-sizes", "32", "16"])
    assert config.optim.batch == 12
    assert config.crops.local_sizes == (32, 16)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_explains_its_flags(name, capsys):
    with pytest.raises(SystemExit) as stop:
        parse([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--optim.batch INT" in shown
    assert "Images of an update" in shown


def test_help_names_the_recipes(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in RECIPES)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((*OK, "--optim.batch", "x"), "Error parsing --optim.batch: invalid literal for int()"),
        ((*OK, "--optim.bach", "3"), "Unrecognized options: --optim.bach, 3; Perhaps you meant:"),
        ((*OK, "--optim.clip", "no"), "invalid choice 'no' for argument '--optim.clip'"),
        (OK[:3], "Missing from python -m trainer.pretrain smoke: --out PATH"),
        (("swin-huge", *OK[1:]), "recipe is 'swin-huge', expected one of swin-tiny-w7, "),
        ((), "Expected one of {swin-tiny-w7, "),
        (("--config",), "--config wants the file of a config"),
        (("--config", "none.json"), "[Errno 2] No such file or directory: 'none.json'"),
        (("--config", "/"), "[Errno 21] Is a directory: '/'"),
        ((*OK, "--optim.batch", "0"), "batch is 0, expected 1 or more"),
    ],
)
def test_what_is_not_understood_is_said_in_one_line(argv, message, capsys):
    assert refusal(argv, capsys).startswith(message)


def test_what_is_in_no_box_stays_as_it_is():
    assert in_one_line("a fault\n") == "a fault"


@pytest.mark.parametrize(
    "box",
    [
        "╭─ Title ────╮\n│ Missing:   │\n│     --out  │\n│         why │\n│ ────────── │\n"
        "│ For full helptext, run │\n╰────────────╯\n",
        " Title     \n --------- \n  Missing: \n      --out \n          why \n  ---------\n"
        "  For full helptext, run\n           \n",
    ],
)
def test_boxes_with_and_without_line_drawing_are_read(box):
    assert in_one_line(box) == "Missing: --out"
