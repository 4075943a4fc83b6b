import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esvit.backbones import lean_mlp as module
from esvit.backbones import remake
from esvit.backbones.layers import MLP
from esvit.backbones.lean_mlp import feed_forward
from esvit.backbones.remake import keep_all

pytestmark = pytest.mark.usefixtures("each_library", "each_kernel")


def layers(dim=8, hidden_dim=24):
    torch.manual_seed(0)
    return nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)


def gradients(function, x, fc1, fc2):
    x = x.detach().requires_grad_()
    result = function(x)
    weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
    tensors = [x, *fc1.parameters(), *fc2.parameters()]
    return result, torch.autograd.grad((result.float() * weights).sum(), tensors)


@pytest.mark.parametrize("worth_keeping", [8, 9])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 24 * 5, 4 * 2**20])
@pytest.mark.parametrize("shape", [(7, 8), (2, 3, 5, 8), (1, 8), (0, 8)])
def test_gradients_equal_autograds_of_the_written_out_form(
    monkeypatch, shape, chunk_bytes, worth_keeping
):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(remake, "WORTH_KEEPING", worth_keeping)
    fc1, fc2 = layers()
    x = torch.randn(shape)
    lean = gradients(lambda x: feed_forward(fc1, fc2, x), x, fc1, fc2)
    written = gradients(lambda x: fc2(F.gelu(fc1(x))), x, fc1, fc2)
    torch.testing.assert_close(lean, written)


def test_bfloat16_is_as_near_to_float32_as_autocast():
    fc1, fc2 = layers(32, 128)
    x = torch.randn(300, 32)
    _, exact = gradients(lambda x: fc2(F.gelu(fc1(x))), x, fc1, fc2)

    def run(function):
        with torch.autocast("cpu", torch.bfloat16):
            return function()

    _, lean = gradients(lambda x: run(lambda: feed_forward(fc1, fc2, x.bfloat16())), x, fc1, fc2)
    _, written = gradients(lambda x: run(lambda: fc2(F.gelu(fc1(x)))), x, fc1, fc2)
    for actual, beside, expected in zip(lean, written, exact, strict=True):
        assert (actual - expected).norm() <= 1.5 * (beside - expected).norm()


def kept_by(mlp, x, dtype):
    """Count the numbers that are kept for the backward pass, the parameters themselves left out."""
    addresses = {parameter.data_ptr() for parameter in mlp.parameters()}
    kept = []

    def pack(tensor):
        kept.append(0 if tensor.data_ptr() in addresses else tensor.numel())
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype is not None),
    ):
        mlp(x)
    return sum(kept)


def test_nothing_but_the_input_is_kept_and_no_copy_of_a_weight():
    mlp, x = MLP(8, 24), torch.randn(5, 8, requires_grad=True)
    for dtype in (None, torch.bfloat16):
        assert kept_by(mlp, x, dtype) == x.numel()


def test_hidden_values_are_kept_where_they_are_dear_and_only_in_float32(monkeypatch):
    monkeypatch.setattr(remake, "WORTH_KEEPING", 8)
    mlp, x = MLP(8, 24), torch.randn(5, 8, requires_grad=True)
    assert kept_by(mlp, x, None) == x.numel() + 5 * 24
    assert kept_by(mlp, x, torch.bfloat16) == x.numel()


def test_where_everything_is_kept_the_layers_are_autograds_own():
    mlp, x = MLP(8, 24), torch.randn(5, 8, requires_grad=True)
    with keep_all():
        kept = mlp(x).grad_fn
    assert kept is not None
    assert "FeedForward" not in type(kept).__name__
    assert "FeedForward" in str(mlp(x).grad_fn.next_functions)


def test_chunks_cover_all_rows_and_equal_ones_are_made_of_a_map(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 2**20)
    x = torch.empty(25088, 1)
    (parts,) = module._chunks(384, x)
    assert {len(part) for part in parts} == {1568}
    assert len(parts) == 16
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    (parts,) = module._chunks(3, torch.arange(29.0).view(29, 1))
    assert torch.equal(torch.cat(parts).flatten(), torch.arange(29.0))
    assert max(len(part) for part in parts) * 3 * 4 <= 100
