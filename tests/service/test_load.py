"""Overload and hardship, of a service in a process of its own; `make soak` goes on for longer."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.service.pictures import png, scene
from tests.service.server import read_until
from tests.service.test_main import ROOT, connect, read_log_until, start
from tests.service.test_memory import bomb
from tests.soak.load import ALLOWED, MIXED, SOON_S, footprint, mixed, overload

A = png(scene())
LISTENS = r"running on http://127\.0\.0\.1:(\d+)"
SMALL = ("--engine", "onnxruntime", "--threads", "1")
MEMORY = Path("/sys/fs/cgroup/memory")

FULL_AND_READ_ONLY = """
mount -t tmpfs -o size=16k tmpfs "$TMPDIR" || exit 77
mount --bind / / && mount -o remount,ro,bind / || exit 77
head -c 1000000 /dev/zero 2>/dev/null > "$TMPDIR/fill"
touch "$PWD/file" 2>/dev/null && exit 77
exec "$@"
"""
"""In a mount namespace: no byte can be written anywhere."""

LIMITED = """
echo $$ > "$GROUP/cgroup.procs" && exec "$@"
"""


@contextmanager
def service(*command: str, **environment: str):
    """Run the service by a command, and give a client and the process."""
    program = [*command, sys.executable, "-m", "service", *SMALL, "--port", "0"]
    process = subprocess.Popen(
        program, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    try:
        port = int(read_log_until(process, LISTENS)[1])
        process.stderr.close()  # a log that nobody reads must not hold it up
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SOON_S) as client:
            yield client, process
    finally:
        process.kill()
        process.wait()


def in_namespace():
    """Tell whether this machine lets us mount."""
    if not sys.platform.startswith("linux"):
        return False
    shell = ["unshare", "-m", "sh", "-c", FULL_AND_READ_ONLY, "sh", "true"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TMPDIR": folder}
        ended = subprocess.run(shell, cwd=ROOT, env=environment, check=False, capture_output=True)
    return ended.returncode == 0


@contextmanager
def memory_group(num_bytes):
    """Make a control group of so much memory, swap included where that is counted."""
    group = MEMORY / f"esvit-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(num_bytes))
    except OSError:
        pytest.skip("no control groups of memory here")
    try:
        yield group
    finally:
        group.rmdir()


def embed(client):
    answer = client.post("/embed", content=A, headers={"content-type": "image/png"})
    assert answer.status_code == 200, answer.text
    return answer.json()["embeddings"]


def test_too_many_clients_are_refused_in_order_and_then_served(model_path):
    few = ("--max-queue-images", "16", "--max-images", "16", "--port", "0")
    with start("--model", str(model_path), *SMALL, *few) as process:
        url = f"http://127.0.0.1:{read_log_until(process, LISTENS)[1]}"
        process.stderr.close()
        found = overload(url, num_clients=100, num_calls=2, seconds=0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_S) == 0
    assert set(found.statuses) <= ALLOWED
    assert found.statuses[200]
    assert found.statuses[429]
    assert found.without_retry_after == 0
    assert found.first_status == 200


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads Linux's /proc")
def test_calls_of_every_kind_leave_no_file_open(model_path):
    with start("--model", str(model_path), *SMALL, "--port", "0") as process:
        url = f"http://127.0.0.1:{read_log_until(process, LISTENS)[1]}"
        process.stderr.close()
        with httpx.Client(base_url=url, timeout=SOON_S) as client:
            assert max(mixed(client, 2 * len(MIXED))) < 500
            _, before = footprint(process.pid)
            mixed(client, 10 * len(MIXED))
            _, after = footprint(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_S) == 0
    assert after <= before + 2


def test_sigterm_answers_all_calls_under_way(model_path):
    head = (
        "POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(A)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with start("--model", str(model_path), *SMALL, "--port", "0") as process:
        port = int(read_log_until(process, LISTENS)[1])
        connections = [connect(port) for _ in range(20)]
        for connection in connections:
            connection.sendall(head.encode())
            assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        process.send_signal(signal.SIGTERM)
        read_log_until(process, "Waiting for")
        for connection in connections:
            connection.sendall(A)
        for connection in connections:
            assert read_until(connection, b"").startswith(b"HTTP/1.1 200 ")
            connection.close()
        assert process.wait(SOON_S) == 0


def test_after_kill_9_the_next_one_takes_over_the_port_at_once():
    with service() as (client, process):
        expected, port = embed(client), client.base_url.port
        with connect(port) as busy:
            busy.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
            process.send_signal(signal.SIGKILL)
            assert process.wait(SOON_S) == -signal.SIGKILL
            with service_at(port) as again:
                assert embed(again) == expected


@contextmanager
def service_at(port):
    with start(*SMALL, "--port", str(port)) as process:
        read_log_until(process, LISTENS)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SOON_S) as client:
            yield client
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_S) == 0


@pytest.mark.skipif(not in_namespace(), reason="may not mount")
def test_it_serves_where_nothing_can_be_written(tmp_path):
    with service("unshare", "-m", "sh", "-c", FULL_AND_READ_ONLY, "sh", TMPDIR=str(tmp_path)) as (
        client,
        process,
    ):
        embed(client)
        large = {"files": [("file", png(scene(1500, 1500)))] * 3}  # forms spool large parts to disk
        assert client.post("/embed", **large).status_code == 200
        assert max(mixed(client, len(MIXED))) < 500
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_S) == 0


@pytest.mark.slow
def test_a_gigabyte_of_memory_is_enough_for_what_costs_most():
    costly = {"content": bomb(5000, 5000, 6), "headers": {"content-type": "image/png"}}
    with (
        memory_group(10**9) as group,
        service("sh", "-c", LIMITED, "sh", GROUP=str(group)) as (client, process),
    ):
        expected = embed(client)
        found = overload(str(client.base_url), num_clients=100, num_calls=3, seconds=0)
        for _ in range(5):
            assert client.post("/embed", **costly).status_code == 422
        large = [("file", png(Image.new("P", (7000, 7000))))] * 8
        assert client.post("/attention?render=overlay", files=large).status_code == 200
        assert set(found.statuses) <= ALLOWED
        assert embed(client) == expected
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_S) == 0
