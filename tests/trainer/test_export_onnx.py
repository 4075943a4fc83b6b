from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from esvit.config import BACKBONES
from esvit.weights import Weights, digest, read_weights, write_safetensors
from service import engine_openvino
from service.contract import INPUT, METADATA_KEY, OUTPUTS, ModelInfo
from tests.conftest import TINY
from trainer import export_onnx, onnx_graph
from trainer.export_onnx import Comparison, ExportConfig, compare, is_equal, load, preprocessing


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)


def passport(path):
    properties = {item.key: item.value for item in onnx.load(path).metadata_props}
    return ModelInfo.from_json(properties[METADATA_KEY])


def run(path, pixels, outputs=OUTPUTS):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(list(outputs), {INPUT: pixels})


def test_file_gives_what_the_backbone_gives(model_path, checkpoint, pixels):
    backbone = read_weights(checkpoint).build_backbone()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        pooled, regions = backbone(images)
        expected = pooled, regions, backbone.attention(images), backbone.last_blocks(images, 4)
    for actual, wanted in zip(run(model_path, pixels), expected, strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, wanted, atol=2e-5)


def test_openvino_agrees(model_path, pixels):
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    model = engine_openvino.core().compile_model(str(model_path), "CPU", hints)
    results = model({INPUT: pixels})
    for output, expected in zip(OUTPUTS, run(model_path, pixels), strict=True):
        np.testing.assert_allclose(results[output], expected, atol=2e-5)


def test_passport_tells_what_the_file_is(model_path, checkpoint):
    info = passport(model_path)
    backbone = read_weights(checkpoint).build_backbone()
    assert info.outputs == {
        "embedding": (32,),
        "regions": (49, 32),
        "attention": (4, 49, 49),
        "last_blocks": (64,),
    }
    assert (info.grid, info.arch, info.licence) == ((7, 7), "swin", "NOASSERTION")
    assert (info.preprocess.resize, info.preprocess.crop) == (256, 224)
    assert info.weights_sha256 == digest(backbone.state_dict())
    assert info.training["file"] == "checkpoint_tiny.pth"
    assert (info.training["network"], info.training["epoch"]) == ("teacher", 2)


def test_file_is_plain_and_self_contained(model_path):
    model = onnx.load(model_path, load_external_data=False)
    onnx.checker.check_model(model)
    assert not [x for x in model.graph.initializer if x.data_location == onnx.TensorProto.EXTERNAL]
    assert [opset.domain for opset in model.opset_import if opset.domain] == []
    assert "Shape" not in {node.op_type for node in model.graph.node}
    assert b".py" not in model_path.read_bytes()
    (pixels,) = model.graph.input
    assert pixels.name == INPUT
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    batch, *rest = pixels.type.tensor_type.shape.dim
    assert (bool(batch.dim_param), [axis.dim_value for axis in rest]) == (True, [224, 224, 3])


def test_differences_are_printed_for_every_output_and_batch(
    model_path, tmp_path, checkpoint, capsys, monkeypatch
):
    monkeypatch.setattr(export_onnx, "export", lambda *_: model_path.read_bytes())
    out = tmp_path / "model.onnx"
    assert export_onnx.main(["--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for batch in (1, 2, 7):
        named = [line.split()[2] for line in lines if line.startswith(f"batch {batch} ")]
        assert named == list(OUTPUTS)
    assert out.read_bytes() == model_path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_crop_keeps_its_share_of_the_image_at_any_size():
    assert [preprocessing(size).resize for size in (64, 224, 384)] == [73, 256, 439]


@pytest.mark.slow
def test_half_precision_keeps_types_and_direction(model_path, tmp_path, checkpoint, pixels):
    half = tmp_path / "half.onnx"
    args = ["--checkpoint", str(checkpoint), "--precision", "fp16", "--out", str(half)]
    assert export_onnx.main(args) == 0
    (a,), (b,) = run(model_path, pixels, ["regions"]), run(half, pixels, ["regions"])
    assert a.dtype == b.dtype == np.float32
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert cosine.min() > 0.999
    assert np.abs(a - b).max() > 1e-5  # it is half precision
    onnx.checker.check_model(onnx.load(half))


def test_file_of_other_weights_is_seen_to_differ(model_path, tmp_path, checkpoint):
    student = read_weights(checkpoint, "student").build_backbone()
    graph = onnx_graph.Pixels2Outputs(student, preprocessing(224)).eval()
    found = compare(model_path.read_bytes(), graph)
    assert not is_equal(found, "fp32")
    assert not is_equal(found, "fp16")


@pytest.mark.parametrize(
    ("difference", "cosine", "fp32", "fp16"),
    [
        (1e-4, 1.0, True, True),
        (1.1e-4, 1.0, False, True),
        (1e-5, 0.9989, True, False),
        (np.nan, np.nan, False, False),
    ],
)
def test_limits_of_difference(difference, cosine, fp32, fp16):
    near = Comparison(1, "embedding", 0.0, 1.0, 1.0)
    found = [near, Comparison(2, "regions", difference, 1.0, cosine)]
    assert (is_equal(found, "fp32"), is_equal(found, "fp16")) == (fp32, fp16)


@pytest.mark.parametrize(
    ("size", "difference", "is_rounding"),
    [(0.5, 9e-5, True), (0.5, 1.2e-4, False), (10.0, 1.2e-4, False), (200.0, 1.9e-3, True),
     (200.0, 2.2e-3, False)],
)  # fmt: skip
def test_more_is_allowed_of_large_values_only(size, difference, is_rounding):
    expected = np.full((1, 2), size, np.float32)
    actual = expected + np.array([[0.0, difference]], np.float32)
    found = export_onnx._comparison(1, "regions", actual, expected)
    assert found.difference == pytest.approx(difference, rel=0.05)
    assert found.size == size
    assert found.is_rounding == is_rounding


def test_file_that_differs_is_not_written(model_path, tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(export_onnx, "export", lambda *_: model_path.read_bytes())  # the teacher's
    out = tmp_path / "model.onnx"
    out.write_bytes(b"before")
    args = ["--checkpoint", str(checkpoint), "--which", "student", "--out", str(out)]
    assert export_onnx.main(args) == 1
    assert "not written: the graph differs from torch" in capsys.readouterr().err
    assert out.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [out]


def test_untrained_says_so_and_follows_the_seed(tmp_path):
    def source(seed):
        args = {"untrained": True, "arch": "swin_nano_w8", "out": tmp_path / "x", "seed": seed}
        return load(ExportConfig(**args))

    first, again, other = source(0), source(0), source(1)
    assert (first.arch, first.name, first.training) == (
        "swin_nano_w8",
        "swin_nano_w8-untrained",
        None,
    )
    assert digest(first.backbone.state_dict()) == digest(again.backbone.state_dict())
    assert digest(first.backbone.state_dict()) != digest(other.backbone.state_dict())


def test_own_weights_bring_their_provenance(tmp_path, tiny_backbone):
    path = tmp_path / "own.safetensors"
    about = {"recipe": "nano", "steps": 10, "licence": "Apache-2.0"}
    state = tiny_backbone.state_dict()
    write_safetensors(path, Weights(state=state, backbone=TINY, about=about))
    source = load(ExportConfig(checkpoint=path, out=tmp_path / "x"))
    assert source.licence == "Apache-2.0"
    assert (source.training["recipe"], source.training["steps"]) == ("nano", 10)


def test_a_run_is_exported_as_far_as_it_has_come(checkpoint, run_folder):
    published = load(ExportConfig(checkpoint=checkpoint, out=Path("x")))
    source = load(ExportConfig(checkpoint=run_folder, out=Path("x")))
    assert source.name == published.name
    assert source.training["step"] == 7
    assert source.licence == "Apache-2.0"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give either --checkpoint or --untrained"),
        (["--untrained", "--checkpoint", "x.pth"], "give either --checkpoint or --untrained"),
        (["--untrained"], "--untrained needs --arch, one of swin_nano_w8, swin_tiny_w7"),
        (["--untrained", "--arch", "swin_huge"], "backbone is 'swin_huge', expected one of swin_n"),
        (["--checkpoint", "none.pth"], "none.pth: no such file"),
        (["--checkpoint", "tiny.pth", "--whiten-from", "layout"], "layout needs --whiten, images"),
        (["--checkpoint", "cut.pth"], "cut.pth: not a readable checkpoint"),
        (["--checkpoint", "tiny.pth", "--arch", "swin_tiny_w7"], "holds swin, not swin_tiny_w7"),
        (["--untrained", "--arch", "swin_nano_w8", "--image-size", "31"], "image size is 31"),
        (["--untrained", "--arch", "swin_nano_w8", "--image-size", "9999"], "expected 32 to 1024"),
        (["--untrained", "--arch", "swin_nano_w8", "--out", "/proc/no/x"], "/proc/no"),
        (["--untrained", "--arch", "swin_nano_w8", "--out", "."], "is a folder, expected"),
    ],
)
def test_impossible_request_ends_in_one_line(
    tmp_path, checkpoint, capsys, monkeypatch, args, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.pth").write_bytes(checkpoint.read_bytes())
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:1000])
    before = sorted(tmp_path.iterdir())
    assert export_onnx.main(["--out", "model.onnx", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_weights_too_large_for_one_file_are_refused(tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(onnx_graph, "MAX_BYTES", 1000)
    args = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "model.onnx")]
    assert export_onnx.main(args) == 2
    assert "bytes, a model file holds 1000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["notes.txt", "notes.txt/below"])
def test_file_in_the_place_of_a_folder_is_named(tmp_path, checkpoint, capsys, folder):
    (tmp_path / "notes.txt").write_text("mine")
    out = tmp_path / folder / "model.onnx"
    assert export_onnx.main(["--checkpoint", str(checkpoint), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said == f"{tmp_path / folder} is, or lies in, a file: expected a folder\n"


def test_misspelt_flag_exits_with_two(capsys):
    with pytest.raises(SystemExit) as caught:
        export_onnx.main(["--outt", "model.onnx"])
    assert caught.value.code == 2
    assert "--outt" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "side"), [("swin_base_w14", 224), ("swin_tiny_w7", 384)])
def test_large_backbones_and_images_export(tmp_path, arch, side):
    out = tmp_path / "model.onnx"
    args = ["--untrained", "--arch", arch, "--image-size", str(side), "--out", str(out)]
    assert export_onnx.main(args) == 0
    info = passport(out)
    assert info.grid == (side // 32, side // 32)
    assert info.dim == BACKBONES[arch].stage_dims[-1]
