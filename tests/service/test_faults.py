"""What goes wrong within: a slow, failing or broken engine, clients that leave, the end."""

import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from service.app import create_app
from service.contract import OUTPUTS, ModelInfo
from tests.service.calls import post_form, post_raw, refused
from tests.service.pictures import png, scene
from tests.service.server import serve
from tests.service.tiny_model import INFO, write_tiny_model

A = png(scene(36, 36))
SOON_S = 20.0


class Engine:
    """Gives zeros; can be held, can fail, can give nonsense."""

    name, provider, precision = "fake", "fake", "fp32"
    num_runners, max_batch, patience_s, uses_cpu = 1, 4, 0.0, True
    compiled = OUTPUTS

    def __init__(self, info: ModelInfo = INFO) -> None:
        self.shapes = info.outputs
        self.num_images: list[int] = []
        self.is_running = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.fails, self.drops = False, 0

    def run(
        self, pixels: np.ndarray, outputs: Sequence[str], *, is_alone: bool = False
    ) -> dict[str, np.ndarray]:
        self.num_images.append(len(pixels))
        self.is_running.release()
        assert self.may_go_on.wait(SOON_S)
        if self.fails:
            raise RuntimeError("out of order, at /secret/path")
        wanted = outputs[self.drops :]
        return {name: np.zeros((len(pixels), *self.shapes[name]), np.float32) for name in wanted}


@pytest.fixture(scope="module")
def breakable(settings):
    engine = Engine()
    app = create_app(settings.model_copy(update={"deadline_s": 0.3}), engine)
    assert engine.is_running.acquire(timeout=SOON_S)  # the warm-up
    with serve(app) as client:
        yield client, engine, app
        engine.may_go_on.set()


@pytest.fixture
def held(breakable):
    """Hold the engine in a run for another caller while the test lasts."""
    client, engine, _ = breakable
    while engine.is_running.acquire(blocking=False):
        pass
    engine.may_go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post_raw, client, "/embed", A)
        assert engine.is_running.acquire(timeout=SOON_S)
        yield client, engine
        engine.may_go_on.set()
        first.result()


def test_an_answer_that_would_come_too_late_is_given_up(held):
    client, _ = held
    response = post_raw(client, "/embed", A)
    refused(response, 503, "deadline_exceeded")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("num_calls", [1, 2], ids=["its only call", "another call behind it"])
def test_the_work_of_a_client_that_hung_up_is_not_done(breakable, held, num_calls):
    client, engine = held
    registry = breakable[2].state.pipeline.metrics.registry

    def left() -> float:
        labels = {"path": "/embed", "status": "499"}
        return registry.get_sample_value("esvit_requests_total", labels) or 0

    before, runs = left(), len(engine.num_images)
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(
            num_calls
            * (
                b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(A), A)
            )
        )
    end = time.monotonic() + SOON_S
    while left() == before and time.monotonic() < end:
        client.get("/livez")  # each call lets the loop turn
    assert left() == before + 1
    engine.may_go_on.set()
    post_raw(client, "/embed", A)
    assert sum(engine.num_images[runs:]) == 1


def test_a_failing_engine_is_an_internal_error_that_tells_nothing(breakable):
    client, engine, _ = breakable
    engine.fails = True
    response = post_form(client, "/embed", [A, A])
    engine.fails = False
    error = refused(response, 500, "internal")
    assert error["message"] == "internal error"
    assert "secret" not in response.text
    assert post_raw(client, "/embed", A).status_code == 200


def test_a_bug_is_an_internal_error_that_tells_nothing(breakable, caplog):
    client, engine, _ = breakable
    engine.drops = 1  # an output is missing: the answer cannot be written
    response = post_raw(client, "/embed", A)
    engine.drops = 0
    error = refused(response, 500, "internal")
    assert error["message"] == "internal error"
    assert response.headers["connection"] == "close"  # else a client would use it again
    assert f"request {error['request_id']} failed" in caplog.text
    assert post_raw(client, "/embed", A).status_code == 200


def test_a_service_that_is_shutting_down_is_alive_but_not_ready(breakable):
    client, _, app = breakable
    app.state.pipeline.is_draining = True
    response = client.get("/readyz")
    alive = client.get("/livez")
    foreign = [client.get("/v2/health/ready"), client.get("/v2/models/tiny/ready")]
    app.state.pipeline.is_draining = False
    refused(response, 503, "draining")
    assert [answer.status_code for answer in foreign] == [503, 503]
    assert client.get("/v2/models/tiny/ready").status_code == 200
    assert response.headers["retry-after"] == "1"
    assert alive.status_code == 200


def test_an_architecture_without_attention_says_so(settings, tmp_path):
    info = replace(INFO, outputs=INFO.outputs | {"attention": (0, 0, 0)})
    model = write_tiny_model(tmp_path / "model.onnx", info.to_json())
    app = create_app(settings.model_copy(update={"model": model}), Engine(info))
    with serve(app) as client:
        error = refused(post_raw(client, "/attention", A), 422, "invalid_request")
        assert error["message"] == "tiny_patches has no attention"
        assert post_raw(client, "/regions", A).status_code == 200
