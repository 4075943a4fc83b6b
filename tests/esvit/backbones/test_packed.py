import pytest
import torch

from esvit.backbones.packed import (
    MapSize,
    cut_windows,
    have_much_padding,
    parts_of,
    split_maps,
    to_rows,
    to_slots,
)
from esvit.backbones.windows import Windows, from_windows, layout_of, to_windows

CPU = torch.device("cpu")
SIZES = [MapSize(2, 5, 9), MapSize(3, 4, 4), MapSize(1, 3, 3)]
every_cut = pytest.mark.parametrize("windows", [Windows(4), Windows(4, 2)])
some_sizes = pytest.mark.parametrize("sizes", [SIZES, SIZES[1:2], SIZES[2:]])


def rows_of(sizes, channels=3):
    torch.manual_seed(0)
    return torch.randn(sum(size.rows for size in sizes), channels, dtype=torch.float64)


def map_by_map(x, windows, sizes, *padding):
    """Cut the maps of one size after those of another."""
    layouts = [layout_of(windows, size.height, size.width, CPU) for size in sizes]
    maps = zip(split_maps(x, sizes), layouts, strict=True)
    return torch.cat([to_windows(part, layout, *padding).flatten(0, 1) for part, layout in maps])


@every_cut
@some_sizes
def test_windows_are_those_of_each_size_alone(windows, sizes):
    x, parts = rows_of(sizes), parts_of(windows, sizes, CPU)
    slots = to_slots(x, parts)
    torch.testing.assert_close(slots, map_by_map(x, windows, sizes), rtol=0, atol=0)
    torch.testing.assert_close(to_rows(slots, parts), x, rtol=0, atol=0)
    for part in parts:
        H, W = part.size.height, part.size.width
        alone = slots[part.slot_span].view(-1, 16, 3)
        expected = from_windows(alone, part.layout, H, W).flatten(0, 2)
        torch.testing.assert_close(x[part.row_span], expected, rtol=0, atol=0)


@every_cut
@some_sizes
def test_padding_may_be_a_row_with_a_gradient(windows, sizes):
    x, parts = rows_of(sizes).requires_grad_(), parts_of(windows, sizes, CPU)
    row = torch.randn(3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(parts[-1].slot_span.stop, 3, dtype=torch.float64)

    def gradients(cut):
        return cut, torch.autograd.grad((cut.sin() * weights).sum(), (x, row))

    together = gradients(cut_windows(x, parts, row))
    torch.testing.assert_close(together, gradients(map_by_map(x, windows, sizes, row)))
    cut = cut_windows(x, parts)
    torch.testing.assert_close(cut, map_by_map(x, windows, sizes))
    assert torch.autograd.gradcheck(lambda x: cut_windows(x, parts).sin(), x)


def test_padding_is_counted_over_all_sizes():
    of_last_stage = MapSize(8, 7, 7), MapSize(32, 3, 3)
    assert have_much_padding(parts_of(Windows(7), of_last_stage, CPU))
    assert not have_much_padding(parts_of(Windows(7), of_last_stage[:1], CPU))
    assert not have_much_padding(parts_of(Windows(7), [MapSize(8, 7, 7), MapSize(1, 3, 3)], CPU))


def test_maps_are_views_of_the_rows():
    x = rows_of(SIZES)
    maps = split_maps(x, SIZES)
    assert [tuple(part.shape) for part in maps] == [(2, 5, 9, 3), (3, 4, 4, 3), (1, 3, 3, 3)]
    assert maps[1].data_ptr() == x[90].data_ptr()
