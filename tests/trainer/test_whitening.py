import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from esvit.backbones import AllOutputs
from esvit.weights import Weights, write_safetensors
from service.contract import INPUT
from service.images import ImageLimits, decode
from service.model_file import read_model_info
from service.preprocess import preprocess
from tests.conftest import TINY
from trainer import export_onnx, whitening
from trainer.whitening import Layout, fit_whitening


@pytest.fixture
def features():
    """Embeddings with a common part, of which few directions hold most."""
    generator = torch.Generator().manual_seed(0)
    spreads = torch.tensor([5.0, 2.0, 1.0, 0.5, 1e-6])
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator))
    return (torch.randn(4000, 5, generator=generator) * spreads) @ turn + 10


def test_whitened_directions_are_independent_and_equally_spread(features):
    mean, matrix = fit_whitening(features, 5)
    white = (features - mean) @ matrix
    covariance = white.T @ white / len(white)
    torch.testing.assert_close(covariance[:4, :4], torch.eye(4) / 4, atol=1e-4, rtol=0)
    torch.testing.assert_close(white.square().sum(dim=1).mean(), torch.tensor(1.0))


def test_numbers_come_in_the_order_of_how_much_they_vary(features):
    mean, matrix = fit_whitening(features, 5)
    gains = torch.linalg.vector_norm(matrix, dim=0)
    assert gains.tolist() == sorted(gains.tolist())
    assert ((features - mean) @ matrix)[:, 0].std() > 0.4


def test_noise_is_not_blown_up(features):
    mean, matrix = fit_whitening(features, 5)
    assert ((features - mean) @ matrix)[:, 4].abs().max() < 1e-3


def test_the_first_directions_alone_are_those_of_all(features):
    (_, matrix), (_, first) = fit_whitening(features, 5), fit_whitening(features, 2)
    torch.testing.assert_close(
        (F.normalize(first, dim=0).T @ F.normalize(matrix[:, :2], dim=0)).abs(),
        torch.eye(2),
        atol=1e-3,
        rtol=0,
    )


def test_too_few_images_are_refused(features):
    with pytest.raises(ValueError, match="whitening to 5 numbers needs 20 images, not 19"):
        fit_whitening(features[:19], 5)


@pytest.fixture
def images(tmp_path):
    """So many pictures that all directions of TINY's 64 features are known."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(260):
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1)))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    return folder


def export(tmp_path, name, *arguments):
    torch.manual_seed(0)
    checkpoint = tmp_path / "weights.safetensors"
    state = export_onnx.build(TINY).state_dict()
    write_safetensors(checkpoint, Weights(state=state, backbone=TINY, about={}))
    out = tmp_path / f"{name}.onnx"
    paths = ("--checkpoint", str(checkpoint), "--out", str(out), "--cache", str(tmp_path / "cache"))
    return out, export_onnx.main([*paths, "--image-size", "64", *arguments])


def embed(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    spec = read_model_info(path).preprocess
    decoded = [decode(file.read_bytes(), ImageLimits()) for file in sorted(images.iterdir())]
    pixels = np.stack([preprocess(image, spec, "crop").pixels for image in decoded])
    return session.run(["embedding", "regions"], {INPUT: pixels})


def test_an_exported_file_in_half_precision_whitens_too(tmp_path, images):
    options = ("--whiten", str(images), "--whiten-from", "layout")
    full, code = export(tmp_path, "full", *options)
    half, half_code = export(tmp_path, "half", *options, "--precision", "fp16")
    assert (code, half_code) == (0, 0)
    (expected, _), (found, _) = embed(full, images), embed(half, images)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1) / lengths).min() > 0.999


def test_lengths_are_summed_in_float32_in_half_precision(tmp_path, images):
    options = ("--whiten", str(images), "--whiten-from", "layout", "--precision", "fp16")
    half, _ = export(tmp_path, "half", *options)
    graph = onnx.load(half).graph
    makers = {name: node for node in graph.node for name in node.output}
    sums = [node for node in graph.node if node.op_type == "ReduceL2"]
    assert len(sums) == len(TINY.depths)
    for node in sums:
        cast = makers[node.input[0]]
        assert cast.op_type == "Cast"
        assert cast.attribute[0].i == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("begin", ["pooled", "layout"])
def test_an_exported_file_gives_whitened_embeddings_and_says_so(tmp_path, images, begin):
    plain, code = export(tmp_path, "plain")
    options = ("--whiten", str(images), "--whiten-from", begin)
    white, white_code = export(tmp_path, "white", *options)
    assert (code, white_code) == (0, 0)
    infos = read_model_info(plain), read_model_info(white)
    assert [info.whitening for info in infos] == [None, {"from": begin, "images": 260}]
    assert infos[0].weights_sha256 != infos[1].weights_sha256
    assert infos[1].name == f"{infos[0].name}-whitened"

    (before, regions), (after, same_regions) = embed(plain, images), embed(white, images)
    np.testing.assert_array_equal(regions, same_regions)
    assert before.shape == after.shape

    assert np.abs(before.mean(axis=0)).max() > 1e-2
    assert np.abs(after.mean(axis=0)).max() < 1e-4
    assert np.square(after).sum(axis=1).mean() == pytest.approx(1, rel=1e-3)
    assert after[:, 0].std() == pytest.approx(after[:, 1].std(), rel=1e-2)


def test_of_many_images_some_are_drawn_and_a_second_export_finds_them_worked_out(
    tmp_path, images, monkeypatch
):
    monkeypatch.setattr(whitening, "MOST_IMAGES", 256)
    first, _ = export(tmp_path, "first", "--whiten", str(images))
    assert read_model_info(first).whitening == {"from": "pooled", "images": 256}

    monkeypatch.setattr(whitening, "BATCH", 0)  # nothing can be worked out
    second, _ = export(tmp_path, "second", "--whiten", str(images))
    assert second.read_bytes() == first.read_bytes()


def test_where_an_image_has_many_numbers_as_few_are_drawn_as_will_do(tmp_path, images, monkeypatch):
    monkeypatch.setattr(whitening, "MOST_BYTES", 0)
    path, code = export(tmp_path, "white", "--whiten", str(images), "--whiten-from", "layout")
    assert code == 0
    assert read_model_info(path).whitening == {"from": "layout", "images": 4 * 64}


def test_missing_and_too_few_images_end_in_one_line(tmp_path, images, capsys):
    for file in sorted(images.iterdir())[:10]:
        file.unlink()
    for folder, words in ((images, "needs 256 images"), (tmp_path / "none", "no such")):
        out, code = export(tmp_path, "white", "--whiten", str(folder))
        assert code == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
        assert not out.exists()


def test_a_layout_is_the_means_of_all_maps_in_four_by_four_parts():
    torch.manual_seed(0)
    fine, coarse = torch.randn(1, 2, 7, 7), torch.randn(1, 3, 2, 3)
    empty = torch.empty(0)
    found = Layout([(7, 7), (2, 3)])(AllOutputs(empty, empty, empty, empty, (fine, 9 * coarse)))
    parts = F.adaptive_avg_pool2d(F.normalize(fine, dim=1), (4, 4))
    torch.testing.assert_close(found[:, :32], parts.permute(0, 2, 3, 1).reshape(1, 32))
    same = F.normalize(coarse, dim=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(found[:, 32:], same.reshape(1, 18))
