import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource, torch
from trainer.memory import keep_freed_memory
assert keep_freed_memory()
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10**7)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="wants glibc")
def test_freed_memory_is_used_again_without_asking_the_system():
    command = [sys.executable, "-c", FAULTS]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(answer.stdout) < 4e7 / resource.getpagesize() / 10


MAPPED = """
import resource, torch
from trainer.memory import keep_freed_memory, map_large_blocks
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2 * 10**6)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
assert map_large_blocks()
print(min(faults() for _ in range(10)))
keep_freed_memory()
print(min(faults() for _ in range(10)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="wants glibc")
def test_until_it_is_kept_a_large_block_goes_back_to_the_system():
    command = [sys.executable, "-c", MAPPED]
    environment = os.environ | {"THP_MEM_ALLOC_ENABLE": "0"}  # huge pages are few
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    before, after = map(int, answer.stdout.split())
    pages = 8e6 / resource.getpagesize()
    assert before > 0.9 * pages
    assert after < 0.1 * pages


HUGE = """
import torch
from pathlib import Path
from trainer.memory import ask_for_huge_pages
ask_for_huge_pages()
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
