import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esvit.backbones.norm import norm_before_product
from esvit.native import layers, windows

pytestmark = pytest.mark.usefixtures("our_kernels")


def test_gelu_and_its_slope_to_the_last_digit_of_bfloat16():
    x = torch.cat([torch.linspace(-12, 12, 4801), torch.tensor([0.0, 1e30, -1e30])]).bfloat16()
    hidden, grads = x.repeat(3, 1), torch.randn(3, len(x)).bfloat16()
    wide = hidden.double().requires_grad_()
    expected = F.gelu(wide)
    (slopes,) = torch.autograd.grad(expected, wide, grads.double())
    before = grads.clone()
    activated, sums = layers.gelu_back_(grads, hidden)
    torch.testing.assert_close(activated.double(), expected, rtol=2**-8, atol=2e-6)
    torch.testing.assert_close(grads.double(), slopes, rtol=2**-8, atol=2e-6)
    torch.testing.assert_close(sums.double(), slopes.sum(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(hidden[0], x)
    assert not torch.equal(before, grads)


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (300, 96)])
def test_rows_are_added_up_in_float32(shape):
    rows = torch.randn(shape).bfloat16()
    torch.testing.assert_close(layers.sum_rows(rows), rows.float().sum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [5, 16, 96, 200])
def test_layer_norm_rounds_once(dtype, channels):
    torch.manual_seed(0)
    norm = nn.LayerNorm(channels, 1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (5 + torch.randn(3, 7, channels)).to(dtype).requires_grad_()
    grad = torch.randn(3, 7, channels).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        made = norm_before_product(norm, x)
    found = torch.autograd.grad(made, [x, norm.weight, norm.bias], grad)
    wide = x.detach().double().requires_grad_()
    exact = nn.LayerNorm(channels, 1e-6).double()
    exact.load_state_dict(norm.state_dict())
    expected = exact(wide)
    parameters = [wide, exact.weight, exact.bias]
    gradients = torch.autograd.grad(expected, parameters, grad.double())
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.double(), expected, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(
        found[0].double(), gradients[0], rtol=1e-4 if dtype == torch.float32 else 2**-8, atol=1e-4
    )
    for actual, wanted in zip(found[1:], gradients[1:], strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("arguments", [{"bias": False}, {"elementwise_affine": False}])
def test_a_layer_norm_that_has_less_is_torchs(arguments):
    norm, x = nn.LayerNorm(32, **arguments), torch.randn(3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm_before_product(norm, x), norm(x))
    half = nn.LayerNorm(32, dtype=torch.bfloat16)
    assert torch.equal(norm_before_product(half, x.bfloat16()), half(x.bfloat16()))


def test_what_is_not_contiguous_is_refused():
    with pytest.raises(ValueError, match="contiguous"):
        layers.sum_rows(torch.zeros(3, 5, dtype=torch.bfloat16).T)


def test_what_taking_by_index_does_not_take():
    x, index, out = torch.randn(2, 4, 3), torch.tensor([0, 1]), torch.empty(2, 2, 3)
    assert windows.can_take(x, index, out)
    assert not windows.can_take(x, index.int(), out)
    assert not windows.can_take(x, index, out.bfloat16())
    assert not windows.can_take(x, index, out[:1])
    assert not windows.can_take(x.transpose(0, 1), index, torch.empty(4, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 40, 96])
def test_rows_are_taken_by_index(dtype, channels):
    x = torch.randn(3, 5, channels).to(dtype)
    index = torch.tensor([4, 5, 0, 0, 5, 2, 1])
    out = torch.full((3, 7, channels), torch.nan, dtype=dtype)
    windows.take(x, index, out)
    assert torch.equal(out, F.pad(x, (0, 0, 0, 1))[:, index])
