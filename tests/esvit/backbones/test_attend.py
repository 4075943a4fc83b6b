from functools import partial

import pytest
import torch

from esvit.backbones import attend as module
from esvit.backbones.attend import attend, attend_self, attend_with_weights


def inputs(rows, biases, heads=2, queries=5, keys=6, dim=4):
    torch.manual_seed(0)
    shapes = [(rows, heads, length, dim) for length in (queries, keys, keys)]
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    return [*tensors, torch.randn(biases, heads, queries, keys, requires_grad=True)]


def kept_by(function):
    """Count the numbers that are kept for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        function()
    return sum(kept)


def gradients(function, tensors):
    result = function(*tensors, 0.3)
    weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
    return result, torch.autograd.grad((result.float() * weights).sum(), tensors)


@pytest.mark.parametrize(("rows", "biases"), [(1, 1), (6, 1), (6, 3), (6, 6)])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 2**20])
def test_gradients_equal_autograds_of_the_written_out_form(monkeypatch, rows, biases, chunk_bytes):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    tensors = inputs(rows, biases)
    fused = gradients(attend, tensors)
    written = gradients(lambda *given: attend_with_weights(*given)[0], tensors)
    torch.testing.assert_close(fused, written)


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 2**20])
def test_a_common_product_and_views_of_it_get_the_gradients_of_the_written_out_form(
    monkeypatch, chunk_bytes
):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    *_, bias = inputs(4, 2, queries=5, keys=5)
    common = torch.randn(4, 5, 3, 2, 4, requires_grad=True)

    def gradient(function):
        return torch.autograd.grad(function(bias, 0.3).square().sum(), (common, bias))

    parts = common.permute(2, 0, 3, 1, 4).unbind(0)
    written = gradient(lambda *given: attend_with_weights(*parts, *given)[0])
    torch.testing.assert_close(gradient(partial(attend, *parts)), written)
    torch.testing.assert_close(gradient(partial(attend_self, common)), written)


def test_bfloat16_is_as_near_to_float32_as_the_written_out_form():
    tensors = inputs(6, 3, queries=20, keys=20)
    _, exact = gradients(attend, tensors)
    halves = [x.detach().bfloat16().requires_grad_() for x in tensors[:3]]
    rounded = [*halves, tensors[3]]
    _, fused = gradients(attend, rounded)
    _, written = gradients(lambda *given: attend_with_weights(*given)[0], rounded)
    for actual, beside, expected in zip(fused, written, exact, strict=True):
        assert (actual - expected).norm() <= 1.5 * (beside - expected).norm()


def test_bfloat16_of_a_common_product_is_as_near_too():
    torch.manual_seed(0)
    *_, bias = inputs(6, 3, queries=20, keys=20)
    common = torch.randn(6, 20, 3, 2, 4)

    def gradient(function, qkv):
        qkv = qkv.detach().requires_grad_()
        result = function(qkv)
        weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
        return torch.autograd.grad((result.float() * weights).sum(), (qkv, bias))

    def written_out(qkv):
        return attend_with_weights(*qkv.permute(2, 0, 3, 1, 4).unbind(0), bias, 0.3)[0]

    exact = gradient(written_out, common)
    written = gradient(written_out, common.bfloat16())
    found = gradient(lambda qkv: attend_self(qkv, bias, 0.3), common.bfloat16())
    for actual, beside, expected in zip(found, written, exact, strict=True):
        assert (actual - expected).norm() <= 1.5 * (beside - expected).norm()


def test_of_a_common_product_nothing_else_is_kept():
    *_, bias = inputs(6, 3, queries=50, keys=50)
    common = torch.randn(6, 50, 3, 2, 4, requires_grad=True)
    assert kept_by(lambda: attend_self(common, bias, 0.3)) == common.numel() + bias.numel()


def test_nothing_of_the_size_of_the_weights_is_kept():
    tensors = inputs(6, 3, queries=50, keys=50)
    assert kept_by(lambda: attend(*tensors, 0.3)) == sum(x.numel() for x in tensors)


@pytest.mark.parametrize("biases", [1, 3])
@pytest.mark.parametrize("form", ["apart", "common"])
def test_a_learned_bias_does_not_keep_torch_from_its_fused_operator(form, biases):
    query, key, value, bias = inputs(6, biases, queries=5, keys=5)
    with torch.profiler.profile() as profile:
        if form == "apart":
            attend(query, key, value, bias, 0.3)
        else:
            attend_self(torch.stack([query, key, value], 2).transpose(1, 3), bias, 0.3)
    names = {event.name for event in profile.events()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_attention_math" not in names
