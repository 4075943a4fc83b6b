"""A tiny model file, settings for it, and a client of the service that serves it."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.__main__ import main
from service.app import create_app
from service.settings import Settings
from tests.service.server import serve
from tests.service.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="session")
def settings(model_path: Path) -> Settings:
    return Settings(model=model_path, engine="onnxruntime", device="cpu", threads=2)


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[httpx.Client]:
    with serve(create_app(settings)) as client:
        yield client


@pytest.fixture
def own_log() -> Iterator[None]:
    """Let a test set up the log of the process, and put back what was there."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, own_log: None) -> Callable[..., int]:
    """Give the service's command as a function, for what ends before it serves."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["service", *arguments])
        return main()

    return run
