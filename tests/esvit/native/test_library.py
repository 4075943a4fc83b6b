import os
import subprocess
import sys

import pytest

from esvit.native import library
from tests.conftest import forget_library


@pytest.fixture(autouse=True)
def anew():
    forget_library()
    yield
    forget_library()


@pytest.fixture
def with_compiler():
    if not library.is_made_for("x86_64") or library.load() is None:
        pytest.skip("no compiler for C++, or no processor with AVX-512")
    forget_library()


@pytest.fixture
def small(with_compiler, monkeypatch, tmp_path):
    """Something to compile that is quickly done."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "one.cpp").write_text('extern "C" int one() { return 1; }')
    monkeypatch.setattr(library, "_SOURCES", tmp_path / "sources")


def test_off_is_off(monkeypatch):
    monkeypatch.setenv(library.SETTING, "off")
    assert library.load() is None
    assert library.kind() == "none"


def test_in_a_block_torch_does_the_work(with_compiler):
    with library.torch_only():
        assert library.load() is None
    assert library.load() is not None


def test_other_processors_have_none():
    assert not library.is_made_for("aarch64")


def test_a_library_is_compiled_once(small, monkeypatch, tmp_path):
    monkeypatch.setenv(library.SETTING, str(tmp_path / "kernels"))
    assert library.load() is not None
    (compiled,) = (tmp_path / "kernels").iterdir()
    monkeypatch.setattr(subprocess, "run", None)
    forget_library()
    assert library.load() is not None
    assert [*(tmp_path / "kernels").iterdir()] == [compiled]


def test_other_sources_or_processors_get_a_library_of_their_own(small, tmp_path):
    first, second = (library.compile_into(tmp_path, amx=amx) for amx in (False, True))
    (tmp_path / "sources" / "two.h").write_text("// changed")
    assert len({first, second, library.compile_into(tmp_path, amx=True)}) == 3


@pytest.mark.parametrize("compiler", [None, "exit 3", "echo 'no such flag' >&2; exit 1"])
def test_without_a_working_compiler_torch_does_the_work(monkeypatch, tmp_path, caplog, compiler):
    if not library.is_made_for("x86_64"):
        pytest.skip("no processor with AVX-512")
    if compiler:
        (tmp_path / "c++").write_text(f"#!/bin/sh\n{compiler}\n")
        (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.setenv(library.SETTING, str(tmp_path / "kernels"))
    assert library.load() is None
    (message,) = caplog.messages
    assert ("no C++ compiler" if compiler is None else "failed") in message
    assert [*tmp_path.glob("kernels/*")] == []


def test_a_second_compiler_is_tried(small, monkeypatch, tmp_path):
    (tmp_path / "g++").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.setattr(library, "_COMPILERS", (str(tmp_path / "g++"), *library._COMPILERS))
    assert library.compile_into(tmp_path / "kernels", amx=False).exists()


def test_no_home_is_no_end(monkeypatch, caplog):
    if not library.is_made_for("x86_64"):
        pytest.skip("no processor with AVX-512")

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(library.SETTING, raising=False)
    monkeypatch.setattr(library.Path, "home", home)
    assert library.load() is None
    assert "home directory" in caplog.messages[0]


def test_a_damaged_library_is_no_end(small, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv(library.SETTING, str(tmp_path))
    library.compile_into(tmp_path, amx=library.has_amx()).write_bytes(b"cut")
    assert library.load() is None
    assert "no kernels of our own" in caplog.messages[0]


def test_a_folder_that_cannot_be_written_is_no_end(small, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(library.SETTING, str(tmp_path / "file"))
    assert library.load() is None
    assert len(caplog.messages) == 1


def test_processes_that_compile_at_once_all_get_it(with_compiler, tmp_path):
    code = "from esvit.native.library import load; assert load() is not None"
    environment = os.environ | {library.SETTING: str(tmp_path / "kernels")}
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(60) for process in started] == [0, 0]
    assert len([*(tmp_path / "kernels").iterdir()]) == 1


def test_threads_are_torchs(with_compiler):
    code = """
import os, torch
from esvit.native.attention import attend
torch.set_num_threads(3)
attend(torch.randn(64, 9, 3, 2, 16), torch.zeros(1, 2, 9, 9))
before = len(os.listdir("/proc/self/task"))
torch.randn(512, 512) @ torch.randn(512, 512)
torch.nn.functional.gelu(torch.randn(2000, 2000))
assert len(os.listdir("/proc/self/task")) == before, "a second team of threads"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
