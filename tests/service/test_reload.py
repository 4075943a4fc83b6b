"""A new model file while calls are under way, and files that are none."""

import asyncio
import json
import os
import signal
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import onnx
import pytest

from service.app import create_app
from service.batcher import Batcher
from service.engine import load_engine
from service.errors import ModelError
from service.model_file import read_model_info
from service.parity import photograph_pixels
from service.settings import Settings
from tests.service.calls import post_raw
from tests.service.pictures import png, scene
from tests.service.server import read_until, serve
from tests.service.test_main import connect, read_log_until, start
from tests.service.tiny_model import INFO, write_tiny_model

A = png(scene(36, 36))
SOON_S = 60.0


def write(path, name, passport=None):
    """Put a model of that name in the place of what is there, in one step."""
    text = passport or replace(INFO, name=name).to_json()
    write_tiny_model(path.with_suffix(".new"), text).replace(path)


def wait_for(truth):
    """Wait until something holds that another thread brings about."""
    until = time.monotonic() + SOON_S
    while not truth():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "model.onnx", "first")
    return tmp_path / "model.onnx"


@pytest.fixture(params=["onnxruntime", "openvino"])
def served(path, request):
    settings = Settings(
        model=path,
        engine=request.param,
        precision="fp32",
        device="cpu",
        threads=2,
        reload_every_s=0.02,
    )
    app = create_app(settings)
    with serve(app) as client:
        yield client, app, path


def model(client):
    return client.get("/info").json()["model"]


def reloads(app, result):
    registry = app.state.pipeline.metrics.registry
    return registry.get_sample_value("esvit_reloads_total", {"result": result})


def pipeline_threads():
    """Count the threads of all pipelines in this process, by name; other tests may have some."""
    names = (thread.name for thread in threading.enumerate())
    return Counter(name for name in names if name.startswith(("decode_", "run_")))


def test_a_new_file_is_served_and_the_old_model_is_let_go(served):
    client, app, path = served
    old = weakref.ref(app.state.pipeline.engine)
    num_threads, names = threading.active_count(), pipeline_threads()
    before = client.get("/info").json()["loaded_at"]
    idle = httpx.Client(base_url=client.base_url)  # its connection stays, and makes no other call
    assert post_raw(idle, "/embed", A).status_code == 200
    assert post_raw(client, "/embed", b"no image").status_code == 422
    write(path, "second")
    wait_for(lambda: model(client) == "second")
    assert post_raw(client, "/embed", A).json()["model"] == "second"
    assert client.get("/info").json()["loaded_at"] > before
    assert reloads(app, "swapped") == 1
    series = [line for line in client.get("/metrics").text.splitlines() if "model_info{" in line]
    assert len(series) == 1
    assert 'model="second"' in series[0]
    wait_for(lambda: old() is None)
    idle.close()
    assert pipeline_threads() == names
    assert threading.active_count() <= num_threads + 2  # AnyIO's own, which end when idle


def test_a_call_under_way_is_answered_by_the_model_it_began_with(served):
    client, _, path = served
    head = (
        "POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nConnection: close\r\n"
        f"Content-Length: {len(A)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with connect(client.base_url.port) as connection:
        connection.sendall(head.encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        write(path, "second")
        wait_for(lambda: model(client) == "second")
        connection.sendall(A)
        answer = read_until(connection, b"")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"model":"first"' in answer


def test_no_call_is_dropped_while_models_come_and_go(served):
    client, app, path = served
    expected = post_raw(client, "/embed", A).json()["embeddings"]
    ends = threading.Event()

    def ask():
        models = []
        while not ends.is_set():
            response = post_raw(client, "/embed", A)
            assert response.status_code == 200, response.text
            np.testing.assert_allclose(response.json()["embeddings"], expected, atol=1e-6)
            models.append(response.json()["model"])
        return models

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for number in range(4):
                write(path, f"model-{number}")
                wait_for(lambda name=f"model-{number}": model(client) == name)
        finally:
            ends.set()
        answered_by = set().union(*(asked.result(SOON_S) for asked in asking))
    assert {"model-1", "model-2"} <= answered_by
    assert reloads(app, "swapped") == 4
    assert reloads(app, "refused") == 0


def cut(path):
    whole = path.read_bytes()
    path.with_suffix(".new").write_bytes(whole[: len(whole) // 2])
    path.with_suffix(".new").replace(path)


def another_shape(path):
    write(path, "", replace(INFO, outputs=INFO.outputs | {"embedding": (13,)}).to_json())


def not_finite(path):
    graph = onnx.load(path)
    weights = next(w for w in graph.graph.initializer if w.name == "projection")
    weights.raw_data = np.full(tuple(weights.dims), np.nan, np.float32).tobytes()
    path.with_suffix(".new").write_bytes(graph.SerializeToString())
    path.with_suffix(".new").replace(path)


def with_external_data(path):
    graph = onnx.load(path)
    onnx.save(
        graph,
        path.with_suffix(".new"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    path.with_suffix(".new").replace(path)


BAD = {
    "cut": cut,
    "missing": lambda path: path.unlink(),
    "foreign": lambda path: path.write_bytes(b"not a model"),
    "of another shape": another_shape,
    "not finite": not_finite,
    "with its weights elsewhere": with_external_data,
}


@pytest.mark.parametrize("served", ["onnxruntime"], indirect=True)
@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_a_bad_file_leaves_the_old_one_serving_and_says_so(served, spoil, caplog):
    client, app, path = served
    before = post_raw(client, "/embed", A).json()
    spoil(path)
    wait_for(lambda: client.get("/info").json()["reload_failed_at"])
    assert reloads(app, "refused") == 1
    assert "still serving first: the new model file cannot be served: " in caplog.text
    assert "Traceback" not in caplog.text
    assert post_raw(client, "/embed", A).json() == before
    assert client.get("/readyz").status_code == 200
    write(path, "second")
    wait_for(lambda: model(client) == "second")
    assert client.get("/info").json()["reload_failed_at"] is None


def test_a_file_that_changes_while_it_is_loaded_is_not_believed(path, caplog):
    settings = Settings(model=path, engine="onnxruntime", threads=1)
    app = create_app(settings)
    reloader, state = app.state.reloader, app.state
    first = state.pipeline
    load = reloader._load

    def load_while_it_is_replaced():
        pipeline = load()
        write(path, "third")
        return pipeline

    async def main():
        write(path, "second")
        reloader._load = load_while_it_is_replaced
        await reloader.reload()
        assert state.pipeline is first
        reloader._load = load
        first.start()
        await reloader.reload()
        assert state.pipeline.info.name == "third"
        await reloader.close()

    asyncio.run(main())
    assert "the model file changed while it was loaded" in caplog.text
    assert (reloads(app, "refused"), reloads(app, "swapped")) == (1, 1)


def test_a_model_whose_threads_cannot_start_is_refused_and_the_next_one_served(path, monkeypatch):
    app = create_app(Settings(model=path, engine="onnxruntime", threads=1))
    reloader, state = app.state.reloader, app.state
    first = state.pipeline

    def fail(self):
        raise RuntimeError("can't start new thread")

    async def main():
        first.start()
        write(path, "second")
        with monkeypatch.context() as patched:
            patched.setattr(Batcher, "start", fail)
            await reloader.reload()
        assert state.pipeline is first
        await reloader.reload()
        assert state.pipeline.info.name == "second"
        await reloader.close()

    asyncio.run(main())
    assert (reloads(app, "refused"), reloads(app, "swapped")) == (1, 1)


def test_what_is_compiled_late_is_of_the_file_that_was_loaded(path):
    settings = Settings(model=path, engine="openvino", precision="fp32", threads=2)
    engine = load_engine(settings, read_model_info(path))
    pixels = photograph_pixels(INFO.preprocess)
    expected = engine.run(pixels, ["embedding"])["embedding"]
    not_finite(path)
    late = engine.run(pixels, ["embedding", "last_blocks"])
    np.testing.assert_allclose(late["embedding"], expected, atol=1e-6)
    assert np.isfinite(late["last_blocks"]).all()


def test_what_is_compiled_late_of_a_file_that_was_written_over_is_refused(path):
    settings = Settings(model=path, engine="openvino", precision="fp32", threads=2)
    engine = load_engine(settings, read_model_info(path))
    path.write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="was written over; replace model files by renaming"):
        engine.run(photograph_pixels(INFO.preprocess), ["last_blocks"])


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="has no SIGHUP")
def test_sighup_loads_the_file_again(path):
    options = ("--engine", "onnxruntime", "--threads", "1", "--port", "0")
    with start("--model", str(path), *options) as process:
        read_log_until(process, "running on")
        write(path, "second")
        os.kill(process.pid, signal.SIGHUP)
        read_log_until(process, "now serving second, no more first")
        path.write_bytes(b"not a model")
        os.kill(process.pid, signal.SIGHUP)
        read_log_until(process, "still serving second: ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_S) == 0


@pytest.mark.parametrize("served", ["onnxruntime"], indirect=True)
def test_info_names_no_path(served):
    client, _, path = served
    path.unlink()
    wait_for(lambda: client.get("/info").json()["reload_failed_at"])
    assert str(path.parent) not in json.dumps(client.get("/info").json())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_no_service_starts_on_a_bad_file(path, spoil, engine, run_main, capsys):
    spoil(path)
    arguments = ("--model", str(path), "--engine", engine, "--log-level", "error")
    assert run_main(*arguments) == 3
    assert capsys.readouterr().err.count("\n") == 1
