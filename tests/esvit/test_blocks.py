import pytest
import torch

from esvit.blocks import Owed, add_, reduce_, softmax

pytestmark = pytest.mark.usefixtures("each_kernel")
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@every_dtype
@pytest.mark.parametrize("is_in_place", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (5, 64), (2, 1000)])
def test_softmax_and_what_is_known_of_it(shape, has_bias, is_in_place, dtype):
    torch.manual_seed(0)
    logits = (10 * torch.randn(shape)).to(dtype)
    bias = torch.randn(shape[1]) if has_bias else None
    sums = logits.double() + (0 if bias is None else bias.double())
    expected = sums.softmax(dim=1)
    out = logits if is_in_place else torch.empty_like(logits)
    found = softmax(logits, bias, out)
    rtol = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=1e-30)
    logsumexp = sums.logsumexp(dim=1, keepdim=True)
    torch.testing.assert_close(found.logsumexp.double(), logsumexp, rtol=1e-5, atol=1e-5)
    mean = (expected * sums).sum(dim=1, keepdim=True)
    torch.testing.assert_close(found.mean_logit.double(), mean, rtol=1e-5, atol=1e-5)


@every_dtype
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_not_hidden(value, dtype):
    logits = torch.zeros(3, 50, dtype=dtype)
    logits[1, 49] = value
    found = softmax(logits, None, logits)
    for values in (*found, logits):
        assert values.isfinite().all(dim=1).tolist() == [True, False, True]


@every_dtype
def test_targets_are_taken_off(dtype):
    torch.manual_seed(0)
    student, teacher = torch.rand(4, 37).to(dtype), torch.rand(3, 37).to(dtype)
    share = torch.rand(4, 1)
    owed = Owed(torch.tensor([2, 0, 1, 1]), torch.tensor([0, 2, 2, 3]), torch.rand(4))
    expected = student.double() * share
    for row, matches in enumerate(([0, 1], [], [2], [3])):
        for m in matches:
            expected[row] -= owed.factors[m] * teacher[owed.matches[m]].double()
    left = reduce_(student, teacher, share, owed)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(student.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(left, student.float().sum(dim=1, keepdim=True))


@every_dtype
def test_sums_stay_float32(dtype):
    sums, added = torch.randn(5, 19), torch.randn(5, 19).to(dtype)
    expected = sums + added.float()
    assert torch.equal(add_(sums, added), expected)
