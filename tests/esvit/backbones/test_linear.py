import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from esvit.backbones import linear as module
from esvit.backbones.linear import linear, linear_gelu, multiply, multiply_back
from esvit.config import BACKBONES
from trainer.evaluation.throughput import describe

SHAPES = [(2, 3, 5, 24), (2, 7, 24), (3, 24), (0, 7, 24)]


class Operators(TorchDispatchMode):
    """Names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(func.name())
        return func(*args, **(kwargs or {}))


def in_double(layer, x):
    return F.linear(x.double(), layer.weight.double(), layer.bias.double())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_layer_at_work_gives_the_written_out_numbers(shape, dtype, tolerance):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 10).to(dtype), torch.randn(shape).to(dtype)
    exact = in_double(layer, x)
    with torch.no_grad():
        found = linear(layer, x), linear_gelu(layer, x)
    for actual, expected in zip(found, (exact, F.gelu(exact)), strict=True):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


def test_strided_input_without_bias_gives_the_same():
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 10, bias=False).bfloat16(), torch.randn(2, 24, 7).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(linear(layer, x.mT), layer(x.mT.contiguous()))


def test_autocast_gives_its_own_type_and_numbers():
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 10), torch.randn(2, 7, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        actual, expected = linear(layer, x), layer(x)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected)


def test_gradients_are_the_layers_own():
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 10), torch.randn(2, 7, 24)
    found = torch.autograd.grad(linear_gelu(layer, x).sum(), layer.parameters())
    expected = torch.autograd.grad(F.gelu(layer(x)).sum(), layer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("is_not_for_mkl", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_float32_goes_to_the_library_of_the_processor(is_not_for_mkl, has_bias, monkeypatch):
    monkeypatch.setattr(module, "_is_not_for_mkl", lambda: is_not_for_mkl)
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 10, bias=has_bias), torch.randn(2, 7, 24, requires_grad=True)
    tensors = [x, *layer.parameters()]
    with Operators() as operators:
        result = linear(layer, x)
        found = torch.autograd.grad(result.square().sum(), tensors)
    used = operators.called.count("mkldnn::_linear_pointwise")
    assert used == (2 if is_not_for_mkl else 0)  # forward, and back to the input
    expected = torch.autograd.grad(layer(x).square().sum(), tensors)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(multiply(x, layer.weight, layer.bias), result)
        torch.testing.assert_close(multiply_back(result, layer.weight), result @ layer.weight)


@pytest.mark.parametrize(
    ("capability", "maker", "expected"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
        ("AVX512", None, False),
    ],
)
def test_a_processor_is_told_by_its_maker(capability, maker, expected, monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    if maker:
        cpuinfo.write_text(f"processor : 0\nvendor_id : {maker}\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(module, "Path", lambda _: cpuinfo)
    assert module._is_not_for_mkl.__wrapped__() == expected


@pytest.mark.parametrize("is_not_for_mkl", [True, False])
def test_other_types_are_left_to_torch(is_not_for_mkl, monkeypatch):
    monkeypatch.setattr(module, "_is_not_for_mkl", lambda: is_not_for_mkl)
    layer, x = nn.Linear(24, 10).double(), torch.randn(7, 24, dtype=torch.float64)
    assert torch.equal(linear(layer, x), layer(x))
    assert torch.equal(multiply_back(layer(x), layer.weight), layer(x) @ layer.weight)


@pytest.mark.parametrize("has_bias", [True, False])
def test_gradients_in_bfloat16_are_autocasts_and_no_copy_of_the_weight_is_kept(has_bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 10, bias=has_bias), torch.randn(2, 7, 24, requires_grad=True)
    tensors = [x, *layer.parameters()]
    found, kept = [], []
    for function in (lambda x: linear(layer, x), layer):
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
            ),
        ):
            result = function(x)
        assert result.dtype == torch.bfloat16
        found.append(torch.autograd.grad(result.float().square().sum(), tensors))
        is_copied = [y.dtype == torch.bfloat16 and y.numel() == 240 for y in kept]
        assert any(is_copied) == (function is layer)
    torch.testing.assert_close(*found, atol=0.02, rtol=0.02)
    assert {gradient.dtype for gradient in found[0]} == {torch.float32}


def test_parameters_without_gradients_get_none():
    layer, x = nn.Linear(24, 10), torch.randn(7, 24, requires_grad=True)
    layer.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        linear(layer, x).float().sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    assert layer.bias.grad is not None


def test_gelu_is_no_pass_of_its_own_where_no_gradient_is_asked():
    layer, x = nn.Linear(24, 10), torch.randn(7, 24)
    with torch.no_grad(), Operators() as operators:
        linear_gelu(layer, x)
    assert "aten::gelu" not in operators.called
    with Operators() as operators:
        linear_gelu(layer, x)
    assert "aten::gelu" in operators.called


def test_products_in_one_pass_are_counted():
    """DeiT-T: 1.26 billion multiply-adds, 1.3 in its paper (Touvron et al. 2021, table 5)."""
    with torch.no_grad():
        assert describe(BACKBONES["deit_tiny_p16"], 224)["gmacs"] == pytest.approx(1.26, abs=0.02)
