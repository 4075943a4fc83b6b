import pytest
import torch

from trainer import devices
from trainer.config import ComputeConfig
from trainer.devices import choose_device, choose_precision, count_passes


@pytest.mark.parametrize(
    ("share", "most", "passes"), [(512, 32, 16), (32, 32, 1), (8, 32, 1), (12, 8, 2), (7, 3, 7)]
)
def test_passes_are_equal_small_enough_and_few(share, most, passes):
    assert count_passes(share, most) == passes


def test_cpu_is_taken_when_asked_for():
    assert choose_device(ComputeConfig(device="cpu")) == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants a machine without CUDA")
def test_missing_cuda_is_refused():
    assert choose_device(ComputeConfig()).type == "cpu"
    with pytest.raises(ValueError, match="no CUDA device"):
        choose_device(ComputeConfig(device="cuda"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_the_one_asked_for(precision):
    config = ComputeConfig(precision=precision)
    assert choose_precision(config, torch.device("cpu")) == precision


@pytest.mark.parametrize(
    ("able", "before", "speedup", "expected"),
    [
        ({}, None, 9.0, "fp32"),
        ({}, "bf16", 9.0, "fp32"),
        ({"avx512_bf16": True, "amx_bf16": True}, "fp32", 0.1, "bf16"),
        ({"avx512_bf16": True}, None, 1.8, "bf16"),
        ({"avx512_bf16": True}, None, 1.1, "fp32"),
        ({"avx512_bf16": True}, "bf16", 0.6, "bf16"),
        ({"avx512_bf16": True}, "fp32", 1.8, "fp32"),
    ],
    ids=["none", "moved", "amx", "gains", "loses", "resumed-in-bf16", "resumed-in-fp32"],
)
def test_precision_is_bf16_where_it_is_faster(monkeypatch, able, before, speedup, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(devices, "product_speedup", lambda: speedup)
    assert choose_precision(ComputeConfig(), torch.device("cpu"), before) == expected


def test_precision_is_fp32_if_any_process_wants_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(devices.distributed, "largest", lambda _: 1)
    assert choose_precision(ComputeConfig(), torch.device("cpu")) == "fp32"


def test_products_are_timed_in_turn_and_the_fastest_of_each_counts(monkeypatch):
    durations = [9.0, 5.0, 6.0, 2.0, 7.0, 3.0, 6.0, 4.0, 8.0, 2.0]  # fp32, bf16, fp32, ...
    ticks = iter([tick for duration in durations for tick in (0.0, duration)])
    monkeypatch.setattr(devices, "perf_counter", lambda: next(ticks))
    assert devices.product_speedup() == 6.0 / 2.0
