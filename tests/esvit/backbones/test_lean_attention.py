import pytest
import torch
from torch import nn

from esvit.backbones import attend as module
from esvit.backbones.attend import attend_with_weights
from esvit.backbones.lean_attention import attend_between
from esvit.backbones.remake import keep_all
from esvit.backbones.swin_layers import WindowAttention


def parts(biases=2, dim=8, heads=2, tokens=5):
    torch.manual_seed(0)
    bias = torch.randn(biases, heads, tokens, tokens, requires_grad=True)
    return nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), bias


def written_out(qkv, proj, x, bias, heads):
    B, T, C = x.shape
    query, key, value = qkv(x).view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mixed, _ = attend_with_weights(query, key, value, bias, (C // heads) ** -0.5)
    return proj(mixed.transpose(1, 2).flatten(2))


def gradients(function, x, qkv, proj, bias):
    x = x.detach().requires_grad_()
    result = function(qkv, proj, x, bias, 2)
    weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
    tensors = [x, *qkv.parameters(), *proj.parameters(), bias]
    return result, torch.autograd.grad((result.float() * weights).sum(), tensors)


@pytest.mark.parametrize(("rows", "biases"), [(1, 1), (6, 1), (6, 3), (6, 6)])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 2**20])
def test_gradients_equal_autograds_of_the_written_out_form(monkeypatch, rows, biases, chunk_bytes):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    qkv, proj, bias = parts(biases)
    x = torch.randn(rows, 5, 8)
    lean = gradients(attend_between, x, qkv, proj, bias)
    torch.testing.assert_close(lean, gradients(written_out, x, qkv, proj, bias))


def test_bfloat16_is_as_near_to_float32_as_autocast():
    qkv, proj, bias = parts(3, dim=32, tokens=20)
    x = torch.randn(12, 20, 32)
    _, exact = gradients(written_out, x, qkv, proj, bias)

    def in_bfloat16(function, dtype):
        def run(qkv, proj, x, bias, heads):
            with torch.autocast("cpu", torch.bfloat16):
                return function(qkv, proj, x.to(dtype), bias, heads)

        return run

    _, lean = gradients(in_bfloat16(attend_between, torch.bfloat16), x, qkv, proj, bias)
    _, written = gradients(in_bfloat16(written_out, torch.float32), x, qkv, proj, bias)
    for actual, beside, expected in zip(lean, written, exact, strict=True):
        assert (actual - expected).norm() <= 1.5 * (beside - expected).norm()


def test_nothing_but_input_and_bias_is_kept_and_no_copy_of_a_weight():
    qkv, proj, bias = parts()
    parameters = [*qkv.parameters(), *proj.parameters(), bias]
    addresses = {parameter.data_ptr() for parameter in parameters}
    kept = []

    def pack(tensor):
        kept.append(0 if tensor.data_ptr() in addresses else tensor.numel())
        return tensor

    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(4, 5, 8, dtype=dtype, requires_grad=True)
        del kept[:]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            assert attend_between(qkv, proj, x, bias, 2).dtype == dtype
        assert sum(kept) == x.numel()


def test_a_layer_takes_it_in_bfloat16_where_its_bias_is_learned_and_not_everything_is_kept():
    attention = WindowAttention(8, 2, 3)
    nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(2, 9, 8, requires_grad=True)

    def name(dtype=torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return type(attention(x, attention.bias(None)).grad_fn).__name__

    assert "AttendBetween" in name()
    assert "AttendBetween" not in name(torch.float32)
    with keep_all():
        assert "AttendBetween" not in name()
    attention.requires_grad_(False)
    assert "AttendBetween" not in name()
