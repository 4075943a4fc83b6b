from pathlib import Path

import pytest

from tests.service.pictures import png, scene


@pytest.fixture(autouse=True)
def small_engine(model_path, monkeypatch):
    """Settings of the service reach a bulk run by the environment."""
    monkeypatch.setenv("ESVIT_MODEL", str(model_path))
    monkeypatch.setenv("ESVIT_ENGINE", "onnxruntime")
    monkeypatch.setenv("ESVIT_DEVICE", "cpu")
    monkeypatch.setenv("ESVIT_THREADS", "2")


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of seven pictures, one damaged, one in a folder of its own, and two other files."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png(scene(40 + number, 36, seed=number)))
    (folder / "2.png").write_bytes(b"no picture")
    (folder / "deep" / "a.JPG").write_bytes(png(scene(50, 60, seed=7)))
    (folder / "deep" / "z.png").write_bytes(png(scene(36, 36, seed=8)))
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder
