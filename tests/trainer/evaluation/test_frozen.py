import pytest
import torch
from rich.console import Console

from esvit.weights import read_weights, write_safetensors
from service.parity import photograph_pixels
from trainer.evaluation.config import KnnConfig, NetworkConfig
from trainer.evaluation.frozen import open_network, open_subject

OUTPUTS = ("embedding", "regions", "attention", "last_blocks")


def photographs(frozen):
    return torch.from_numpy(photograph_pixels(frozen.spec)).permute(0, 3, 1, 2)


def test_model_file_and_checkpoint_give_the_same(checkpoint, model_path):
    frozen = open_network(NetworkConfig(checkpoint=checkpoint))
    served = open_network(NetworkConfig(model=model_path))
    assert frozen.spec == served.spec
    pixels = photographs(frozen)
    for output in OUTPUTS:
        torch.testing.assert_close(
            served.run(pixels, output), frozen.run(pixels, output), atol=1e-4, rtol=1e-4
        )


def test_run_folder_gives_its_teacher_at_its_size(checkpoint, run_folder):
    frozen = open_network(NetworkConfig(checkpoint=run_folder))
    assert frozen.spec.crop == 64
    published = open_network(NetworkConfig(checkpoint=checkpoint))
    assert frozen.digest == published.digest
    student = open_network(NetworkConfig(checkpoint=run_folder, which="student"))
    assert student.digest != frozen.digest


def test_each_file_of_a_network_gives_it(checkpoint, run_folder, tmp_path):
    own = tmp_path / "teacher.safetensors"
    write_safetensors(own, read_weights(checkpoint))
    (saved,) = (run_folder / "checkpoints").glob("*.safetensors")
    frozen = {path: open_network(NetworkConfig(checkpoint=path)) for path in (own, saved)}
    digest = open_network(NetworkConfig(checkpoint=checkpoint)).digest
    assert {network.digest for network in frozen.values()} == {digest}
    assert (frozen[own].spec.crop, frozen[saved].spec.crop) == (224, 64)  # a run says its size


def test_bf16_is_near_and_another_arithmetic(checkpoint):
    full = open_network(NetworkConfig(checkpoint=checkpoint, device="cpu"))
    half = open_network(NetworkConfig(checkpoint=checkpoint, device="cpu", precision="bf16"))
    assert full.arithmetic != half.arithmetic
    pixels = photographs(full)
    cosine = torch.cosine_similarity(full.run(pixels, "embedding"), half.run(pixels, "embedding"))
    assert (cosine > 0.99).all()


def test_network_says_what_it_is(checkpoint, model_path):
    about = open_network(NetworkConfig(checkpoint=checkpoint, image_size=96)).describe()
    assert about["image_size"] == 96
    assert about["network"] == "teacher"
    assert open_network(NetworkConfig(model=model_path)).describe()["network"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either --checkpoint or --model"),
        ({"checkpoint": "a.pth", "model": "a.onnx"}, "either --checkpoint or --model"),
        ({"checkpoint": "a.pth"}, "no such file"),
        ({"model": "a.onnx"}, "no such file"),
        ({"model": "a.onnx", "image_size": 96}, "its own image size"),
        ({"checkpoint": "a.pth", "image_size": 9}, "expected 32 to 1024"),
        ({"checkpoint": "empty"}, "no checkpoint of a run"),
        ({"checkpoint": "cut.safetensors"}, "not weights of ours"),
        ({"model": "cut.onnx"}, "cannot load it"),
        ({"model": "empty"}, "is a folder, expected a model file; a run is a --checkpoint"),
    ],
)
def test_network_that_is_not_there_is_refused(tmp_path, monkeypatch, options, message):
    (tmp_path / "empty").mkdir()
    for name in ("cut.safetensors", "cut.onnx"):
        (tmp_path / name).write_bytes(b"damaged")
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    paths = {k: Path(v) if k in ("checkpoint", "model") else v for k, v in options.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_network(NetworkConfig(**paths))


def test_model_file_without_passport_is_refused(model_path, tmp_path):
    import onnx

    model = onnx.load(model_path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="has no passport"):
        open_network(NetworkConfig(model=tmp_path / "foreign.onnx"))
    model.metadata_props.add(key="esvit", value="{}")
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="not the passport"):
        open_network(NetworkConfig(model=tmp_path / "foreign.onnx"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "^batch is 0, expected 1 or more$"),
        ({"max_images": 0}, "^max_images is 0, expected 1 or more$"),
        ({"seed": -1}, "^seed is -1, expected 0 or more$"),
        ({"num_workers": 1000}, "^num_workers is 1000, expected 0 to 512$"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        open_subject(KnnConfig(data="", **options), Console(stderr=True))
