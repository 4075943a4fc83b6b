import json

import pytest
import torch

from esvit.weights import read_weights
from tests.trainer.pictures import fill_folder
from trainer import evaluate
from trainer.evaluation.config import default_cache


@pytest.fixture
def data(tmp_path):
    """Twelve labelled pictures, and six to ask about."""
    fill_folder(tmp_path / "data" / "train", 12)
    fill_folder(tmp_path / "data" / "val", 6)
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path, reference, capsys):
    """Run the command on a tiny checkpoint and give exit code, standard output and error."""

    def run(name, *options):
        always = ["--num-workers", "0", "--cache", str(tmp_path / "cache")]
        checkpoint = str(reference / "checkpoint_tiny.pth")
        always += ["--checkpoint", checkpoint, "--image-size", "64"]
        code = evaluate.main([name, *always, *map(str, options)])
        return code, *capsys.readouterr()

    return run


def test_knn_of_few_images_and_two_classes(run, data):
    code, out, _ = run("knn", "--data", data)
    assert code == 0
    answer = json.loads(out)
    assert answer["train_images"] == 12
    assert answer["test_images"] == 6
    assert answer["classes"] == 2
    assert list(answer["k"]) == ["10", "20", "100", "200"]
    assert answer["k"]["20"]["top5"] == 1
    assert answer["k"]["20"] == answer["k"]["200"]
    assert 0 <= answer["k"]["20"]["roc_auc"] <= 1
    assert answer["network"]["image_size"] == 64
    assert run("knn", "--data", data)[1] == out


def test_knn_with_test_images_elsewhere(run, data):
    code, out, _ = run("knn", "--data", data / "train", "--test", data / "val", "--k", 1)
    assert code == 0
    assert json.loads(out)["test_images"] == 6


def test_image_among_the_labelled_ones_is_its_own_neighbour(run, data):
    _, out, _ = run("knn", "--data", data / "train", "--test", data / "train", "--k", 1)
    assert json.loads(out)["k"]["1"]["top1"] == 1


def test_fewer_images_are_the_same_every_time(run, data):
    options = ("--data", data, "--max-images", 4, "--seed", 3)
    _, out, _ = run("knn", *options)
    assert json.loads(out)["train_images"] == 4
    assert run("knn", *options)[1] == out


def test_test_images_of_a_class_unknown_in_training_are_counted(run, data):
    fill_folder(data / "val", 3, classes=("horse",))
    _, out, errors = run("knn", "--data", data)
    assert json.loads(out)["test_images_of_unknown_class"] == 3
    assert "3 test images are of no class in training" in errors


def test_retrieval_and_correspondence(run, data):
    code, out, _ = run("retrieval", "--data", data / "train", "--queries", data / "val")
    assert code == 0
    assert json.loads(out)["recall_at_10"] == 1
    code, out, _ = run("correspondence", "--data", data / "val")
    assert code == 0
    assert json.loads(out)["images"] == 6


def test_linear(run, data, reference):
    options = ("--epochs", 3, "--base-lr", 0.1, 1.0)
    code, out, _ = run("linear", "--data", data, *options)
    assert code == 0
    answer = json.loads(out)
    backbone = read_weights(reference / "checkpoint_tiny.pth").build_backbone()
    blocks = backbone.last_blocks(torch.zeros(1, 3, 64, 64), 4)
    assert answer["features"] == blocks.shape[1]
    assert [run["base_lr"] for run in answer["sgd"]["runs"]] == [0.1, 1.0]
    assert 0 <= answer["lbfgs"]["accuracy"] <= 1
    alone = json.loads(run("linear", "--data", data, "--method", "lbfgs")[1])
    assert alone["lbfgs"] == answer["lbfgs"]
    assert "sgd" not in alone


def test_model_file_is_measured_too(data, model_path, capsys):
    options = ["--model", str(model_path), "--num-workers", "0", "--no-use-cache"]
    assert evaluate.main(["knn", "--data", str(data), *options]) == 0
    assert "onnxruntime" in json.loads(capsys.readouterr().out)["network"]["arithmetic"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nothing/here"], "no such file or folder: nothing/here"),
        (["--data", "{data}/val"], "no folders train and val"),
        (["--data", "{data}/train/cat", "--test", "{data}/val"], "needs labels"),
        (["--data", "{data}/train", "--test", "{data}/other"], "has no class of"),
        (["--data", "{data}", "--k", "0"], "k is (0,)"),
        (["--data", "{data}", "--batch", "0"], "batch is 0"),
        (["--data", "{data}", "--which", "neither"], "neither"),
    ],
)
def test_bad_input_is_refused_in_a_line_with_code_2(run, data, capsys, words, message):
    fill_folder(data / "other", 4, classes=("horse", "cow"))
    try:
        code, out, errors = run("knn", *(word.replace("{data}", str(data)) for word in words))
    except SystemExit as stop:  # the command line's own refusal
        code, (out, errors) = stop.code, capsys.readouterr()
    assert code == 2
    assert out == ""
    assert message in errors


def test_interruption_has_its_code(run, data, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "measure", stop)
    code, out, errors = run("knn", "--data", data)
    assert code == 130
    assert out == ""
    assert "goes on where it was" in errors


def test_cache_lies_where_the_system_keeps_such_things(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "esvit" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "esvit" / "features"


@pytest.mark.slow  # a process of its own imports torch again
def test_throughput(capsys):
    words = ["--arch", "swin_nano_w8", "--image-size", "64", "--repeats", "2"]
    assert evaluate.main(["throughput", *words, "--batches", "2", "--precisions", "fp32"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (case,) = answer["cases"]
    assert case["images_per_s"] > 0
    assert answer["networks"]["swin_nano_w8"]["parameters_m"] > 1
    assert answer["device"]


@pytest.mark.slow
def test_throughput_of_a_model_file_names_its_size(capsys, model_path):
    words = ["--model", str(model_path), "--batches", "1", "--repeats", "1"]
    assert evaluate.main(["throughput", *words]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["image_size"] == 224
    assert answer["cases"][0]["precision"] == "own"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arch", "swin_giant"], "backbone is 'swin_giant'"),
        (["--model", "nothing.onnx"], "nothing.onnx: no such file"),
        (["--checkpoint", "nothing.pth"], "nothing.pth: no such file"),
        ([], "give one of --arch"),
    ],
)
def test_throughput_of_nothing_is_refused(words, message, capsys):
    assert evaluate.main(["throughput", *words]) == 2
    assert message in capsys.readouterr().err
