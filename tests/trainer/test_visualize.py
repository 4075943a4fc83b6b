import numpy as np
import pytest
from PIL import Image

from service.parity import PHOTOGRAPHS
from trainer.visualize import main

CAT, COFFEE = (
    next(path for path in PHOTOGRAPHS if path.stem == name) for name in ("cat", "coffee")
)


@pytest.fixture(params=["checkpoint", "model"])
def network(request, reference, model_path):
    """Flags of the same small network, as a checkpoint and as a model file."""
    paths = {"checkpoint": reference / "checkpoint_tiny.pth", "model": model_path}
    return [f"--{request.param}", str(paths[request.param])]


def run(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (("attention", CAT, COFFEE, "--heads", "3"), (340, 509)),
        (("attention", CAT, "--query", "300", "150"), (416, 305)),
        (("attention", CAT, "--pooled"), (416, 305)),
        (("correspondence", CAT), (248, 186)),
        (("correspondence", CAT, COFFEE, "--no-mutual-only", "--top-k", "5"), (248, 186)),
        (("regions", CAT, COFFEE, "--fit", "pad"), (188, 282)),
    ],
)
def test_a_picture_is_written(tmp_path, network, capsys, words, size):
    out = tmp_path / "figure.png"
    assert run(*words, *network, "--panel", "64", "--out", out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    image = Image.open(out)
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", size)
    assert num_colours(np.asarray(image)) > 500
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("kind", ["attention", "correspondence", "regions"])
def test_equal_commands_give_equal_pictures(tmp_path, model_path, kind):
    for name in ("a.png", "b.png"):
        words = ("--model", model_path, "--panel", "64", "--out", tmp_path / name)
        assert run(kind, CAT, *words) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_checkpoint_can_look_closer(tmp_path, reference):
    words = ("--checkpoint", reference / "checkpoint_tiny.pth", "--out", tmp_path / "f.png")
    assert run("regions", CAT, *words, "--image-size", "64") == 0
    coarse = np.asarray(Image.open(tmp_path / "f.png"))
    assert run("regions", CAT, *words, "--image-size", "448") == 0
    fine = np.asarray(Image.open(tmp_path / "f.png"))
    cells = (slice(410, -80), slice(40, 320))
    assert num_colours(coarse[cells]) < 50
    assert num_colours(fine[cells]) > 100


def num_colours(image):
    return len(np.unique(image.reshape(-1, 3), axis=0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("attention",), "give an image"),
        (("attention", "no.jpg"), "no.jpg"),
        (("attention", CAT.parent), "is a folder"),
        (("attention", CAT.parent / "README.md"), "bytes are no image"),
        (("attention", CAT, "--query", "0", "0"), "lies outside what is seen of the 451x300"),
        (("attention", CAT, "--heads", "0"), "--heads of 1 or more"),
        (("attention", CAT, "--query", "5", "5", "--pooled"), "not both"),
        (("attention", CAT, "--panel", "9"), "panel is 9, expected 64 to 1024"),
        (("correspondence", CAT, CAT, CAT), "one or two images"),
        (("correspondence", CAT, "--top-k", "0"), "--top-k of 1 or more"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path, model_path, capsys, words, message):
    assert run(*words, "--model", model_path, "--out", tmp_path / "f.png") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["f.jpg", "no/f.png"])
def test_a_picture_that_cannot_be_written_is_refused_at_once(tmp_path, model_path, capsys, out):
    assert run("regions", CAT, "--model", model_path, "--out", tmp_path / out) == 2
    assert "expected a .png file in a folder that is there" in capsys.readouterr().err


def test_a_network_without_attention_is_refused(tmp_path, capsys):
    from esvit.backbones import build
    from esvit.config import backbone_config
    from esvit.weights import Weights, write_safetensors

    config = backbone_config("resnet50")
    weights = Weights(state=build(config).state_dict(), backbone=config, about={})
    write_safetensors(tmp_path / "r.safetensors", weights)
    words = ("--checkpoint", tmp_path / "r.safetensors", "--image-size", "64")
    assert run("attention", CAT, *words, "--out", tmp_path / "f.png") == 2
    assert "resnet50 has no attention" in capsys.readouterr().err
