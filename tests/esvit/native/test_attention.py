import pytest
import torch

from esvit.backbones.attend import apart, attend_with_weights
from esvit.native import attention

pytestmark = pytest.mark.usefixtures("our_kernels")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
"""Of the largest value; bfloat16 rounds to 4e-3 of each."""

# Windows, biases, heads, tokens, channels of a head.
SHAPES = [(6, 1, 3, 49, 32), (8, 4, 2, 49, 32), (3, 1, 2, 64, 64), (4, 2, 1, 16, 16)]
SHAPES += [(2, 2, 1, 196, 32), (1, 1, 1, 1, 32), (5, 5, 9, 33, 48)]


def made(shape, dtype):
    torch.manual_seed(0)
    W, N, heads, T, D = shape
    qkv, grad = torch.randn(W, T, 3, heads, D).to(dtype), torch.randn(W, T, heads, D).to(dtype)
    bias = torch.randn(N, heads, T, T)
    if T > 2:
        bias[:, :, :, 1] = -10_000.0
        bias[:, :, :, 2] = -torch.inf
    return qkv, grad, bias


def exact(qkv, grad, bias):
    """Give result and gradients in float64."""
    qkv, bias = qkv.double().requires_grad_(), bias.double().requires_grad_()
    query, key, value = apart(qkv)
    mixed, _ = attend_with_weights(query, key, value, bias, qkv.shape[-1] ** -0.5)
    mixed = mixed.transpose(1, 2)
    return mixed, *torch.autograd.grad(mixed, [qkv, bias], grad.double())


def assert_near(actual, expected, dtype):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_are_those_of_the_written_out_form(shape, dtype):
    qkv, grad, bias = made(shape, dtype)
    mixed, of_qkv, of_bias = exact(qkv, grad, bias)
    assert attention.can_attend(qkv)
    assert_near(attention.attend(qkv, bias), mixed, dtype)
    grad_qkv, again = torch.full_like(qkv, torch.nan), torch.full_like(grad, torch.nan)
    assert_near(attention.attend_back(grad, qkv, bias, grad_qkv, again), of_bias, torch.float32)
    assert_near(grad_qkv, of_qkv, dtype)
    assert_near(again, mixed, dtype)
    without = torch.empty_like(qkv)
    attention.attend_back(grad, qkv, bias, without, None)
    assert torch.equal(without, grad_qkv)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_any_number_of_threads_gives_the_same(shape, dtype):
    qkv, grad, bias = made(shape, dtype)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        grad_qkv = torch.empty_like(qkv)
        of_bias = attention.attend_back(grad, qkv, bias, grad_qkv, None)
        found.append((attention.attend(qkv, bias), grad_qkv, of_bias))
    torch.set_num_threads(before)
    for mixed, of_qkv, of_bias in found[1:]:
        assert torch.equal(mixed, found[0][0])
        assert torch.equal(of_qkv, found[0][1])
        torch.testing.assert_close(of_bias, found[0][2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_not_hidden(dtype, value):
    qkv, grad, bias = made(SHAPES[0], dtype)
    qkv[0, 3, 0, 0, 5] = value
    mixed = attention.attend(qkv, bias)
    assert not mixed[0, 3, 0].isfinite().any()
    assert mixed[1:].isfinite().all()
    grad_qkv = torch.empty_like(qkv)
    of_bias = attention.attend_back(grad, qkv, bias, grad_qkv, None)
    assert not of_bias[0, 0, 3].isfinite().any()
    assert not grad_qkv[0, 3, 0, 0].isfinite().any()


def test_a_bias_may_lie_in_any_way_but_must_fit():
    qkv, _, bias = made((6, 3, 2, 16, 16), torch.float32)
    turned = bias.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(attention.attend(qkv, turned), attention.attend(qkv, bias))
    for wrong in (bias.repeat(2, 1, 1, 1)[:4], bias[:, :1], bias[..., :15]):
        with pytest.raises(ValueError, match="do not go with windows"):
            attention.attend(qkv, wrong)


def test_what_the_kernel_does_not_take():
    assert not attention.can_attend(torch.randn(2, 4, 3, 1, 8))
    assert not attention.can_attend(torch.randn(2, 4, 3, 1, 16, dtype=torch.float64))
    assert not attention.can_attend(torch.randn(4, 2, 3, 1, 16).transpose(0, 1))
    assert not attention.can_attend(torch.randn(1, attention.MOST_TOKENS + 1, 3, 1, 16))
