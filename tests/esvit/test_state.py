import pytest
import torch

from esvit.state import count_numbered, tensor_of


def test_numbered_parts_are_counted_and_others_are_not():
    state = dict.fromkeys(
        ["blocks.0.a", "blocks.1.a", "blocks.1.b", "blocks.norm", "x.2"], torch.zeros(1)
    )
    assert count_numbered(state, "blocks.") == 2
    assert count_numbered(state, "layers.") == 0


def test_a_number_left_out_is_named():
    state = {f"blocks.{number}.a": torch.zeros(1) for number in (0, 2)}
    with pytest.raises(ValueError, match=r"blocks\. is numbered \[0, 2\]"):
        count_numbered(state, "blocks.")


def test_a_tensor_has_to_be_there_with_its_axes():
    state = {"a": torch.zeros(2, 3)}
    assert tensor_of(state, "a", 2) is state["a"]
    with pytest.raises(ValueError, match="no tensor b"):
        tensor_of(state, "b", 2)
    with pytest.raises(ValueError, match=r"tensor a has shape \(2, 3\), expected 1 axes"):
        tensor_of(state, "a", 1)
