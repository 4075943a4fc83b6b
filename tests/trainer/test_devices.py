import pytest
import torch

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


def test_precision_is_bf16_where_the_processor_multiplies_it():
    able = torch.cpu.get_capabilities()
    expected = "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"
    assert choose_precision(ComputeConfig(), torch.device("cpu")) == expected
