"""The service killed while it indexes: what it acknowledged is there, nothing is there twice."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.service.pictures import png, scene

ROOT = Path(__file__).parents[3]
NUM_PICTURES, BATCH = 60, 3
NUM_BEFORE_THE_KILL = 9


@contextmanager
def serving(model: Path, folder: Path):
    """Run the command with a gallery; gives the process and a client of it."""
    options = ("--engine", "onnxruntime", "--threads", "1", "--port", "0")
    command = [sys.executable, "-m", "service", "--model", str(model), *options]
    with subprocess.Popen(
        [*command, "--gallery-path", str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            port = next(
                found[1]
                for line in process.stderr
                if (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line))
            )
            threading.Thread(target=process.stderr.read, daemon=True).start()
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
                yield process, client
        finally:
            process.kill()


def batches() -> list[list[tuple]]:
    files = [("file", ("name", png(scene(24, 24, seed=n)))) for n in range(NUM_PICTURES)]
    return [files[start : start + BATCH] for start in range(0, NUM_PICTURES, BATCH)]


def test_a_kill_loses_nothing_acknowledged_and_doubles_nothing(model_path, tmp_path):
    acknowledged: list[str] = []
    with serving(model_path, tmp_path) as (process, client):

        def send() -> None:
            try:
                for batch in batches():
                    images = client.post("/gallery/index", files=batch).json()["images"]
                    acknowledged.extend(image["id"] for image in images)
                    if len(acknowledged) >= NUM_BEFORE_THE_KILL:
                        enough.set()
            except httpx.TransportError:
                pass  # the service is dead

        enough = threading.Event()
        sender = threading.Thread(target=send)
        sender.start()
        assert enough.wait(timeout=600)
        os.kill(process.pid, signal.SIGKILL)
        sender.join()
        assert process.wait() == -signal.SIGKILL
    with serving(model_path, tmp_path) as (process, client):
        there = {p["id"] for p in client.get("/gallery?limit=1000").json()["pictures"]}
        assert set(acknowledged) <= there
        known = []
        for batch in batches():
            images = client.post("/gallery/index", files=batch).json()["images"]
            known += [image["id"] for image in images if image["known"]]
        assert set(known) == there  # nothing of it was computed again
        assert client.get("/gallery?limit=0").json()["count"] == NUM_PICTURES
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=600) == 0
