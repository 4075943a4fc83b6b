import pytest
import torch

from esvit.backbones import attend as module
from esvit.backbones.attend import attend, attend_with_weights


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


def test_bfloat16_is_as_near_to_float32_as_the_written_out_form():
    tensors = inputs(6, 3, queries=20, keys=20)
    _, exact = gradients(attend, tensors)
    halves = [x.detach().bfloat16().requires_grad_() for x in tensors[:3]]
    rounded = [*halves, tensors[3]]
    _, fused = gradients(attend, rounded)
    _, written = gradients(lambda *given: attend_with_weights(*given)[0], rounded)
    for actual, beside, expected in zip(fused, written, exact, strict=True):
        assert (actual - expected).norm() <= 1.5 * (beside - expected).norm()


def test_nothing_of_the_size_of_the_weights_is_kept():
    tensors = inputs(6, 3, queries=50, keys=50)
    assert kept_by(lambda: attend(*tensors, 0.3)) == sum(x.numel() for x in tensors)


@pytest.mark.parametrize("biases", [1, 3])
def test_a_learned_bias_does_not_keep_torch_from_its_fused_operator(biases):
    tensors = inputs(6, biases, queries=5, keys=5)
    with torch.profiler.profile() as profile:
        attend(*tensors, 0.3)
    names = {event.name for event in profile.events()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_attention_math" not in names
