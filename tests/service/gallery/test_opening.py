"""Which gallery the settings ask for, and how a service without one starts."""

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest
from pydantic import ValidationError

from service.app import create_app
from service.errors import GalleryError
from service.gallery.opening import open_gallery
from service.settings import Settings
from tests.service.gallery.test_store import PASSPORT
from tests.service.tiny_model import INFO, write_tiny_model


def test_there_is_none_unless_asked_for(settings):
    assert open_gallery(settings, INFO) is None
    assert create_app(settings).state.gallery is None


def test_a_folder_and_a_server_are_not_both_the_gallery(settings, tmp_path):
    with pytest.raises(ValidationError, match="both set"):
        Settings(gallery_path=tmp_path, gallery_url="http://127.0.0.1:1")


def test_a_server_that_does_not_answer_stops_the_start(settings):
    asked = settings.model_copy(update={"gallery_url": "http://127.0.0.1:1"})
    with pytest.raises(GalleryError, match="gallery collection esvit cannot be opened"):
        create_app(asked)


def test_a_gallery_of_another_model_stops_the_start(settings, tmp_path):
    from service.gallery.edge import EdgeStore

    EdgeStore(tmp_path, replace(PASSPORT, weights_sha256="f" * 64, model="other")).close()
    with pytest.raises(GalleryError, match=r"was filled by model other \(weights ffffffffffff\)"):
        create_app(settings.model_copy(update={"gallery_path": tmp_path}))


def test_without_qdrant_it_says_what_to_install(settings, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "service.gallery.edge", raising=False)
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    with pytest.raises(GalleryError, match=r"pip install '\.\[gallery\]'"):
        open_gallery(settings.model_copy(update={"gallery_path": tmp_path}), INFO)


def test_a_service_without_a_gallery_loads_no_qdrant():
    program = "import sys, service.app; print([m for m in sys.modules if 'qdrant' in m])"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"


def test_a_reload_may_bring_the_galleries_own_model_only(settings, tmp_path):
    model = write_tiny_model(tmp_path / "model.onnx")
    asked = settings.model_copy(update={"gallery_path": tmp_path / "gallery", "model": model})
    app = create_app(asked)

    async def reload() -> None:
        reloader = app.state.reloader
        app.state.pipeline.start()
        write_tiny_model(model, replace(INFO, name="renamed").to_json())
        await reloader.reload()
        assert (app.state.pipeline.info.name, reloader.failed_at) == ("renamed", None)
        write_tiny_model(model, replace(INFO, weights_sha256="1" * 64).to_json())
        await reloader.reload()
        assert app.state.pipeline.info.name == "renamed"
        assert reloader.failed_at is not None
        await reloader.close()

    asyncio.run(reload())
    app.state.gallery.close()
