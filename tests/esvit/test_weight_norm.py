import pytest
import torch

from esvit.head import Prototypes
from esvit.weight_norm import compare, through_weight_norm_, write_weight

pytestmark = pytest.mark.usefixtures("each_kernel")


@pytest.fixture
def prototypes():
    torch.manual_seed(0)
    return Prototypes(torch.randn(70, 19), 0.5 + torch.rand(70, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_effective_prototypes(prototypes, dtype):
    out = torch.empty(70, 19, dtype=dtype)
    expected = prototypes.weight.to(dtype)
    torch.testing.assert_close(write_weight(prototypes, out), expected)
    torch.testing.assert_close(out, expected)


def test_gradients_are_autograds(prototypes):
    gradient, factor = torch.randn(70, 19), torch.tensor(0.3)
    leaves = Prototypes(*(part.requires_grad_() for part in prototypes))
    expected = torch.autograd.grad(leaves.weight, list(leaves), gradient * factor)
    detached = Prototypes(*(part.detach() for part in prototypes))
    found = through_weight_norm_(gradient, detached, factor)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)
    assert found[0] is gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_one_row(prototypes, dtype):
    row, prototypes = (
        torch.randn(1, 19, dtype=dtype),
        Prototypes(*(x.to(dtype) for x in prototypes)),
    )
    torch.testing.assert_close(compare(row, prototypes), row @ prototypes.weight.T)
