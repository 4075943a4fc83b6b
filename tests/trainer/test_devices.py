import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

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


FAULTS = """
import resource, torch
from trainer.devices import keep_freed_memory
assert keep_freed_memory()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10**7)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="wants glibc")
def test_freed_memory_is_used_again_without_asking_the_system():
    command = [sys.executable, "-c", FAULTS]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(answer.stdout) < 4e7 / resource.getpagesize() / 10


HUGE = """
import torch
from pathlib import Path
from trainer.devices import keep_freed_memory
keep_freed_memory()
kept = torch.ones(10**7)
lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
print(next(line for line in lines if line.startswith("AnonHugePages")).split()[1])
"""
CHOICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not CHOICE.exists() or "[madvise]" not in CHOICE.read_text(),
    reason="wants a system that gives huge pages to who asks",
)
@pytest.mark.parametrize("choice", [None, "0"])
def test_large_tensors_lie_in_huge_pages_unless_the_environment_refuses(choice):
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if choice is None else {"THP_MEM_ALLOC_ENABLE": choice}
    command = [sys.executable, "-c", HUGE]
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert (int(answer.stdout) > 0) == (choice is None)
