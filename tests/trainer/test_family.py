"""Every kind of backbone the whole way: pretrained, exported, served."""

import json
import logging
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch

from esvit.config import BACKBONES
from esvit.weights import read_weights
from service.app import create_app
from service.parity import PHOTOGRAPHS
from service.settings import Settings
from tests.conftest import TINIES, TINY_VIT
from tests.service.server import serve
from tests.trainer.pictures import fill_folder
from trainer import export_onnx, pretrain
from trainer.checkpoint import load_latest
from trainer.networks import build_state
from trainer.recipes import smoke
from trainer.schedule import ScheduleConfig
from trainer.step import StepConfig, train_step

SCHEDULE = ScheduleConfig(epochs=2, steps_per_epoch=2, warmup_epochs=0, warmup_teacher_epochs=0)

every_kind = pytest.mark.parametrize("kind", TINIES)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """The smallest of each kind under a name; one thread; the root logger as it was."""
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = root.handlers[:], root.level
    for kind, config in TINIES.items():
        monkeypatch.setitem(BACKBONES, f"tiny_{kind}", config)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    root.handlers, root.level = handlers, level


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return fill_folder(tmp_path_factory.mktemp("images"), 12)


def arguments(kind, images, out, *flags):
    """A smoke run of two epochs of three steps."""
    flags = ["--model.arch", f"tiny_{kind}", *flags]
    return ["smoke", "--data.path", str(images), "--out", str(out), *flags]


@every_kind
def test_smoke_run_trains_and_its_teacher_is_read(kind, images, tmp_path):
    assert pretrain.main(arguments(kind, images, tmp_path / "run")) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    weights = read_weights(tmp_path / "run" / "teacher.safetensors")
    assert weights.backbone == replace(TINIES[kind], drop_path=0.0)
    assert weights.build_model().head_dense is not None


@every_kind
def test_teacher_keeps_statistics_of_its_own(kind, tmp_path):
    """The average is over parameters; what a batch norm counts is what its own network has seen."""
    config = smoke("images", tmp_path)
    config = replace(config, model=replace(config.model, arch=f"tiny_{kind}"))
    state = build_state(config, torch.device("cpu"))
    views = [torch.randn(2, 3, side, side) for side in (64, 64, 32)]
    train_step(state, [views], schedule_config=SCHEDULE, config=StepConfig())
    of_student, of_teacher = (dict(x.named_buffers()) for x in (state.student, state.teacher))
    counts = [name for name in of_student if name.endswith("num_batches_tracked")]
    assert bool(counts) == (kind in ("cvt", "resnet"))
    for name in counts:  # the student's two sizes of views are two passes
        assert (of_student[name], of_teacher[name]) == (2, 1)
        mean = name.replace("num_batches_tracked", "running_mean")
        assert not torch.equal(of_student[mean], of_teacher[mean])


@every_kind
def test_skipped_step_leaves_statistics_as_they_were(kind, tmp_path):
    config = smoke("images", tmp_path)
    config = replace(config, model=replace(config.model, arch=f"tiny_{kind}"))
    state = build_state(config, torch.device("cpu"))
    before = {k: x.clone() for k, x in state.student.state_dict().items()}
    views = [torch.full((2, 3, 64, 64), torch.nan), torch.randn(2, 3, 64, 64)]
    report = train_step(state, [views], schedule_config=SCHEDULE, config=StepConfig())
    assert not report.is_finite
    for network in (state.student, state.teacher):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.slow
@every_kind
def test_resumed_run_equals_an_unbroken_one(kind, images, tmp_path):
    assert pretrain.main(arguments(kind, images, tmp_path / "unbroken")) == 0
    stop = ["--schedule.epochs", "2", "--monitor.evaluate-every", "0"]
    assert pretrain.main(arguments(kind, images, tmp_path / "broken", *stop)) == 0
    found = tmp_path / "broken" / "checkpoints"
    for path in found.glob("step-000000006*"):
        path.unlink()
    (found / "latest").unlink()
    assert pretrain.main(arguments(kind, images, tmp_path / "broken", *stop)) == 0
    one, other = (load_latest(tmp_path / x / "checkpoints") for x in ("unbroken", "broken"))
    assert one.step == other.step == 6
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


CASES = {
    "swin": (TINIES["swin"], 7, 4),
    "vit": (TINY_VIT, 14, 2),
    "vit_p8": (replace(TINY_VIT, patch=8), 28, 2),
    "cvt": (TINIES["cvt"], 28, 2),
    "vil": (TINIES["vil"], 14, 2),
    "resnet": (TINIES["resnet"], 7, 0),
}
"""Backbones, the side of their maps at 224 px, and their heads."""

SLOW = CASES.keys() - {"vit"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES],
)
def served(request, tmp_path_factory):
    """A client of the service with a model of each kind, the side of its map, and its heads."""
    config, side, num_heads = CASES[request.param]
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(BACKBONES, "tiny", config)
        args = ["--untrained", "--arch", "tiny", "--out", str(path)]
        assert export_onnx.main(args) == 0  # which compares the file with torch
    settings = Settings(model=path, device="cpu", threads=2)
    with serve(create_app(settings)) as client:
        yield client, side, num_heads


def test_every_region_is_served(served):
    client, side, _ = served
    answer = post(client, "/regions")
    assert answer["grid"] == [side, side]
    (image,) = answer["images"]
    assert np.shape(image["regions"]) == (side * side, answer["dim"])


def test_regions_of_two_pictures_are_matched(served):
    client, side, _ = served
    cat, other = (path.read_bytes() for path in PHOTOGRAPHS[:2])
    answer = client.post("/correspond", files={"source": cat, "target": other}).json()
    assert answer["grid"] == [side, side]
    assert len(answer["matches"]) == side * side


def test_attention_is_served_where_there_is_any(served):
    client, side, num_heads = served
    if not num_heads:
        response = client.post("/attention", content=PHOTOGRAPHS[0].read_bytes())
        assert response.status_code == 422
        assert response.json()["error"]["message"] == "tiny has no attention"
        return
    answer = post(client, "/attention")
    assert answer["num_heads"] == num_heads
    (image,) = answer["images"]
    assert np.shape(image["attention"]) == (1, side, side)


def post(client: httpx.Client, path: str):
    response = client.post(path, content=PHOTOGRAPHS[0].read_bytes())
    assert response.status_code == 200, response.text
    return response.json()
