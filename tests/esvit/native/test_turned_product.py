import pytest
import torch

from esvit.native import layers


@pytest.fixture(autouse=True)
def with_tiles():
    some = torch.zeros(1, 32, dtype=torch.bfloat16)
    if not layers.can_multiply_turned(some, some):
        pytest.skip("no processor with AMX, or no compiler for C++")


@pytest.mark.parametrize("shape", [(1, 32, 32), (31, 64, 32), (700, 32, 96), (1500, 96, 288)])
def test_turned_products_are_exact_but_for_the_order_of_sums(shape):
    N, D, C = shape
    torch.manual_seed(0)
    left, right = torch.randn(N, D).bfloat16(), torch.randn(N, C).bfloat16()
    expected = left.float().T @ right.float()
    out = torch.full((D, C), torch.nan)
    torch.testing.assert_close(
        layers.multiply_turned(left, right, out, is_first=True), expected, rtol=1e-5, atol=1e-4
    )
    layers.multiply_turned(left, right, out, is_first=False)
    torch.testing.assert_close(out, 2 * expected, rtol=1e-5, atol=2e-4)


def test_turned_products_in_parts_of_any_number_of_threads():
    left, right = torch.randn(2100, 64).bfloat16(), torch.randn(2100, 640).bfloat16()
    before = torch.get_num_threads()
    for a, b in ((left, right), (right, left)):
        expected = a.float().T @ b.float()
        for threads in (1, 3, 8, 40):
            torch.set_num_threads(threads)
            out = torch.empty(a.shape[1], b.shape[1])
            layers.multiply_turned(a, b, out, is_first=True)
            torch.set_num_threads(before)
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-3)


def test_what_the_kernel_does_not_take():
    def can(left, right):
        return layers.can_multiply_turned(left, right)

    good = torch.zeros(3, 64, dtype=torch.bfloat16)
    assert can(good, good)
    assert not can(good[:, :48].contiguous(), good)
    assert not can(good[:0], good[:0])
    assert not can(good, good.float())
    assert not can(good, torch.zeros(64, 3, dtype=torch.bfloat16).T)
