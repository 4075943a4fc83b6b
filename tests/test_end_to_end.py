"""From pictures to answers, by the commands that a user types: each step takes the one before's."""

import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from esvit.weights import read_weights
from service.contract import PreprocessSpec
from service.images import ImageLimits, decode
from service.preprocess import preprocess

ROOT = Path(__file__).parents[1]
SAMPLE = Path(__file__).parent / "reference" / "emoji" / "sample.zip"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all steps leave what they make; drawings by class to begin with."""
    folder = tmp_path_factory.mktemp("user")
    with zipfile.ZipFile(SAMPLE) as archive:
        archive.extractall(folder / "drawings", members=archive.namelist()[::4])
    return folder


@pytest.fixture(scope="module")
def environment(folder):
    """The user's, with a cache of its own and one thread, for machines that do other work too."""
    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def run(folder, environment):
    """Type a command; gives what it writes to standard output."""

    def type_it(module, *words):
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, words)],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return type_it


@pytest.fixture(scope="module")
def data(folder, run):
    out = folder / "data"
    run("trainer.datasets", "openclipart", "--source", folder / "drawings", "--out", out)
    return out


@pytest.fixture(scope="module")
def teacher(folder, run, data):
    licence = "Apache-2.0 AND CC-BY-4.0"
    said = run(
        "trainer.pretrain", "smoke", "--data.path", data / "train", "--out", folder / "run",
        "--licence", licence,
    )  # fmt: skip
    return Path(said.splitlines()[-1])


@pytest.fixture(scope="module")
def model(folder, run, teacher):
    out = folder / "model.onnx"
    run("trainer.export_onnx", "--checkpoint", teacher, "--image-size", "64", "--out", out)
    return out


@pytest.fixture(scope="module")
def client(environment, model):
    with serving(model, environment) as client:
        yield client


@contextmanager
def serving(model, environment):
    """Run `python -m service` on a free port until the block ends."""
    command = [sys.executable, "-m", "service", "--model", str(model), "--port", "0"]
    service = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    said = []
    try:
        for line in service.stderr:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            pytest.fail("".join(said))
        with httpx.Client(base_url=f"http://127.0.0.1:{found[1]}", timeout=60) as client:
            yield client
    finally:
        service.terminate()
        service.communicate(timeout=60)


@pytest.fixture(scope="module")
def drawing(folder):
    """One of the drawings."""
    path, *_ = sorted((folder / "drawings").rglob("*.png"))
    return path.read_bytes()


def test_the_images_lie_in_a_folder_with_a_manifest(folder, data):
    paths = {str(path.relative_to(data)) for path in data.rglob("*.png")}
    with (data / "manifest.csv").open() as file:
        assert {row["path"] for row in csv.DictReader(file)} == paths
    assert len(paths) == 50
    assert {path.partition("/")[0] for path in paths} == {"train", "val"}


def test_the_run_tells_whether_it_learns(folder, teacher):
    metrics = (folder / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in metrics.splitlines()]
    assert any("loss_region" in line for line in lines)
    assert "eval_correspondence" in lines[-1]
    assert teacher.is_file()


def test_evaluation_of_teacher_and_model_file_agree(run, data, teacher, model):
    words = ("trainer.evaluate", "knn", "--data", data, "--k", "5", "--num-workers", "0")
    by_torch = json.loads(run(*words, "--checkpoint", teacher, "--image-size", "64"))
    as_served = json.loads(run(*words, "--model", model))
    del by_torch["network"], as_served["network"]
    assert by_torch == as_served


def test_the_service_knows_what_it_serves(client):
    info = client.get("/info").json()
    assert info["training"]["recipe"] == "smoke"
    assert info["licence"] == "Apache-2.0 AND CC-BY-4.0"


def test_embed_gives_what_the_teacher_says(client, teacher, drawing):
    answer = client.post("/embed", content=drawing, headers={"content-type": "image/png"})
    (embedding,) = answer.json()["embeddings"]
    expected = pooled_by_torch(teacher, drawing)
    assert np.dot(embedding, expected) / np.linalg.norm(expected) > 0.999


def pooled_by_torch(teacher, data):
    """Compute an embedding with nothing of the exporter or the service but its preprocessing."""
    spec = PreprocessSpec(resize=73, crop=64)
    pixels = torch.tensor(preprocess(decode(data, ImageLimits()), spec, "crop").pixels)
    images = (pixels / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    with torch.inference_mode():
        features = read_weights(teacher).build_backbone()(images.permute(2, 0, 1)[None])
    return features.pooled[0].numpy()


def test_correspond_finds_every_region_in_the_same_drawing(client, drawing):
    files = dict.fromkeys(("source", "target"), ("drawing.png", drawing))
    answer = client.post("/correspond", files=files).json()
    rows, columns = answer["grid"]
    assert len(answer["matches"]) == rows * columns
    for match in answer["matches"]:
        assert match["source"] == match["target"]
        assert match["score"] == pytest.approx(1, abs=1e-3)
        assert match["mutual"]
