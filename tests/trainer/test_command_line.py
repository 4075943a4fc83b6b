import json
from pathlib import Path

import pytest

from trainer.command_line import in_one_line, parse
from trainer.config_file import to_json
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


@pytest.mark.parametrize("kept", [["--config", "{}"], ["--config={}"]])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_kept_config_may_stand_anywhere(tmp_path, kept, is_last):
    config = RECIPES["smoke"]("images", Path("run"))
    (tmp_path / "c.json").write_text(json.dumps(to_json(config)))
    words = [word.format(tmp_path / "c.json") for word in kept]
    flags = ["--out", "other", "--optim.batch", "12"]
    found = parse([*flags, *words] if is_last else [*words, *flags])
    assert (found.out, found.optim.batch) == (Path("other"), 12)
    assert found.crops == config.crops


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
    assert "--config RUN/config.json" in " ".join(shown.split())


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
        (("--out", "x", "--config="), "--config wants the file of a config"),
        ((*OK, "--config", "c.json"), "--config stands in the place of a recipe; given is smoke"),
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
