"""A model file as Triton serves it: read by its own messages, served by a server of its own."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from service.contract import INPUT, OUTPUTS, ModelInfo
from service.model_file import read_model_info
from tests.trainer import triton_server
from trainer import export_onnx
from trainer.triton import MAX_BATCH, model_name, repository_files, triton_config

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "tests" / "service" / "protocols" / "clients"


@pytest.fixture
def info(model_path) -> ModelInfo:
    return read_model_info(model_path)


@pytest.fixture
def parsed(tmp_path):
    """Give a function that reads a configuration with tritonclient's messages."""
    python = ROOT / ".venv" / "clients" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} is not there: `make clients` installs the clients")

    def read(text: str) -> dict:
        path = tmp_path / "config.pbtxt"
        path.write_text(text)
        command = [python, CLIENTS / "read_triton_config.py", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read


def test_the_exporter_writes_a_repository_on_request(reference, tmp_path):
    out, repository = tmp_path / "model.onnx", tmp_path / "repository"
    checkpoint = reference / "checkpoint_tiny.pth"
    arguments = ["--checkpoint", str(checkpoint), "--out", str(out)]
    assert export_onnx.main([*arguments, "--triton-repository", str(repository)]) == 0
    info = read_model_info(out)
    (model,) = repository.iterdir()
    assert model.name == model_name(info)
    files = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "1/model.onnx"}
    assert (model / "1" / "model.onnx").read_bytes() == out.read_bytes()
    assert (model / "config.pbtxt").read_text() == triton_config(info)


def test_a_repository_that_cannot_be_written_is_2_and_one_line(reference, tmp_path, capsys):
    (tmp_path / "repository").write_text("a file")
    arguments = [
        "--checkpoint",
        str(reference / "checkpoint_tiny.pth"),
        "--out",
        f"{tmp_path}/m.onnx",
    ]
    code = export_onnx.main([*arguments, "--triton-repository", str(tmp_path / "repository")])
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_name_that_is_no_folder_becomes_one(info):
    assert model_name(replace(info, name="../swin tiny/ü")) == ".._swin_tiny__"


@pytest.mark.clients
def test_triton_reads_what_the_model_file_holds(parsed, info, model_path):
    config = parsed(triton_config(info))
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    types = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}

    def described(nodes):
        return [
            {"name": n.name, "data_type": types[n.type], "dims": [str(d) for d in n.shape[1:]]}
            for n in nodes
        ]

    assert config["input"] == described(session.get_inputs())
    given = {output["name"]: output for output in described(session.get_outputs())}
    assert config["output"] == [given[name] for name in info.outputs]
    assert {output["name"] for output in config["output"]} == set(OUTPUTS)
    assert config["backend"] == "onnxruntime"
    assert config["name"] == model_name(info)
    assert config["max_batch_size"] > 1
    assert config["model_warmup"][0]["inputs"][INPUT]["dims"] == config["input"][0]["dims"]


@pytest.mark.clients
@pytest.mark.parametrize("name", ["plain", 'quote " and \\ backslash', "ümlaut", "line\nend"])
def test_triton_reads_the_passport_whatever_is_in_it(parsed, info, name):
    odd = replace(info, name=name, licence=name)
    config = parsed(triton_config(odd))
    assert ModelInfo.from_json(config["parameters"]["esvit"]["string_value"]) == odd


@pytest.mark.clients
def test_outputs_that_a_model_lacks_are_left_out(parsed, info):
    without = replace(info, outputs=info.outputs | {"attention": (0, 0, 0)})
    names = {output["name"] for output in parsed(triton_config(without))["output"]}
    assert names == {"embedding", "regions", "last_blocks"}


@pytest.fixture
def triton(info, model_path, tmp_path):
    """Have a Triton Inference Server serve the model as the exporter lays it out."""
    environment = ROOT / ".venv" / "triton"
    if not environment.exists():
        pytest.skip(f"{environment} is not there: `make clients` installs the server")
    config_path, path = repository_files(tmp_path / "repository", info)
    config_path.write_text(triton_config(info))
    shutil.copy(model_path, path)
    (tmp_path / "work").mkdir()
    with triton_server.serve(environment, tmp_path / "repository", tmp_path / "work") as client:
        yield client


@pytest.mark.clients
def test_triton_serves_the_repository(triton, info, model_path):
    address = f"/v2/models/{model_name(info)}"
    config = triton.get(f"{address}/config").json()
    assert config["max_batch_size"] == MAX_BATCH
    assert ModelInfo.from_json(config["parameters"]["esvit"]["string_value"]) == info
    side = info.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    tensor = {"name": INPUT, "datatype": "UINT8", "shape": pixels.shape, "data": pixels.tolist()}
    answer = triton.post(f"{address}/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    expected = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: pixels}), strict=True))
    given = {output["name"]: output for output in answer.json()["outputs"]}
    assert set(given) == set(OUTPUTS)
    for name, output in given.items():
        values = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_array_equal(values, expected[name])
