import pytest
import torch

from esvit.backbones import windows
from esvit.backbones.windows import (
    Windows,
    between_positions,
    from_windows,
    layout_of,
    relative_position_index,
    to_windows,
)

CPU = torch.device("cpu")
SIZES = [(7, 7), (14, 7), (5, 9), (3, 3), (1, 1), (8, 16)]


@pytest.mark.parametrize(("H", "W"), SIZES)
@pytest.mark.parametrize("shift", [0, 3])
def test_merge_undoes_partition(H, W, shift):
    layout = layout_of(Windows(7, shift), H, W, CPU)
    x = torch.arange(2.0 * H * W * 3).view(2, H, W, 3)
    torch.testing.assert_close(from_windows(to_windows(x, layout), layout, H, W), x)


@pytest.mark.parametrize(("H", "W"), SIZES)
def test_partition_is_pad_roll_and_cut(H, W):
    x = torch.randn(2, H, W, 3, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (0, 0, 0, -W % 4, 0, -H % 4)).roll((-2, -2), (1, 2))
    rows = [row for image in padded for row in image.split(4)]
    expected = [window.reshape(16, 3) for row in rows for window in row.split(4, dim=1)]
    actual = to_windows(x, layout_of(Windows(4, 2), H, W, CPU))
    torch.testing.assert_close(actual, torch.stack(expected))


@pytest.mark.parametrize(("H", "W"), [(5, 9), (8, 8)])
def test_gradient_moves_back(H, W):
    layout = layout_of(Windows(4, 2), H, W, CPU)
    x = torch.randn(2, H, W, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: to_windows(x, layout).sin(), x)
    cut = to_windows(x, layout).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: from_windows(x, layout, H, W).sin(), cut)


@pytest.mark.parametrize(("H", "W"), [(5, 9), (8, 8)])
def test_padding_may_be_a_row_with_a_gradient(H, W):
    layout = layout_of(Windows(4, 2), H, W, CPU)
    x = torch.randn(2, H, W, 3, dtype=torch.float64, requires_grad=True)
    row = torch.randn(3, dtype=torch.float64, requires_grad=True)
    expected = to_windows(x - row, layout) + row
    torch.testing.assert_close(to_windows(x, layout, row), expected)
    assert torch.autograd.gradcheck(lambda x: to_windows(x, layout, row.detach()).sin(), x)
    (gradient,) = torch.autograd.grad(to_windows(x, layout, row).sin().sum(), row)
    padding = layout.slots.numel() - H * W
    torch.testing.assert_close(gradient, 2 * padding * row.detach().cos())


def test_layout_is_worked_out_once():
    assert layout_of(Windows(7, 3), 12, 12, CPU) is layout_of(Windows(7, 3), 12, 12, CPU)


def test_layout_made_in_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        layout = layout_of(Windows(4, 1), 9, 11, CPU)
    x = torch.ones(1, 9, 11, 2, requires_grad=True)
    to_windows(x, layout).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def test_oldest_layout_is_forgotten(monkeypatch):
    monkeypatch.setattr(windows, "_layouts", {})
    monkeypatch.setattr(windows, "_MAX_TABLES", 2)
    first = layout_of(Windows(2), 2, 2, CPU)
    layout_of(Windows(2), 2, 4, CPU)
    layout_of(Windows(2), 4, 4, CPU)
    assert len(windows._layouts) == 2
    assert layout_of(Windows(2), 2, 2, CPU) is not first


def test_map_of_one_window_needs_no_mask():
    layout = layout_of(Windows(7), 7, 7, CPU)
    assert layout.is_one_window
    assert layout.mask is None


def test_shifted_map_of_four_by_four_by_hand():
    layout = layout_of(Windows(2, 1), 4, 4, CPU)
    assert layout.slots.tolist() == [[5, 6, 9, 10], [7, 4, 11, 8], [13, 14, 1, 2], [15, 12, 3, 0]]
    hidden = (layout.mask[:, 0] < 0).sum((1, 2)).tolist()
    assert hidden == [0, 8, 8, 12]  # of 16 pairs: all adjacent, two columns, two rows, four corners


def test_hidden_positions_get_zero_and_no_subnormal_number():
    layout = layout_of(Windows(2, 1), 4, 4, CPU)
    weights = layout.mask.softmax(-1)
    assert weights[weights > 0].min() == 0.25


def test_relative_position_of_two_by_two_by_hand():
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert relative_position_index(2).tolist() == expected


def test_attention_spreads_to_positions_by_hand():
    layout = layout_of(Windows(2), 2, 3, CPU)  # windows {0, 1, 3, 4} and {2, pad, 5, pad}
    weights = torch.arange(32.0).view(2, 1, 4, 4)
    spread = between_positions(weights, layout)
    assert spread.shape == (1, 1, 6, 6)
    assert spread[0, 0, 3].tolist() == [8, 9, 0, 10, 11, 0]
    assert spread[0, 0, 5].tolist() == [0, 0, 24, 0, 0, 26]
