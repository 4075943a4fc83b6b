"""What refused calls cost in memory, of a service in a process of its own."""

import io
import re
import signal
import struct
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service.pictures import jpeg, png, scene
from tests.service.test_main import read_log_until, start

SOON_S = 120.0
LIMIT_MB = 150

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc"),
]


@pytest.fixture(scope="module")
def service(model_path):
    options = ("--engine", "onnxruntime", "--threads", "2", "--port", "0", "--log-level", "info")
    with start("--model", str(model_path), *options) as process:
        port = int(read_log_until(process, r"running on http://127\.0\.0\.1:(\d+)")[1])
        process.stderr.close()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SOON_S) as client:
            for _ in range(3):  # what is only loaded by the first call is no cost of a refusal
                client.post("/embed", content=png(scene()), headers={"content-type": "image/png"})
                client.post("/embed", files={"file": jpeg(scene())})
            yield client, process.pid
        process.send_signal(signal.SIGKILL)


def memory_mb(pid: int, field: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def bomb(width: int, height: int, colour: int) -> bytes:
    """Give a PNG that is whole but for its last row, whose filter does not exist."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[colour])
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(height - 1))
    data += packer.compress(b"\x09" + row[1:]) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def damaged(kind: str, side: int, **options) -> bytes:
    """Give a large picture with noise in its middle, damaged near its end."""
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side), Image.Resampling.NEAREST).save(buffer, kind, **options)
    data = bytearray(buffer.getvalue())
    at = int(len(data) * 0.97)
    data[at : at + 500] = b"\xff\xff" * 250
    return bytes(data)


JSON = "application/json"
FORM = "multipart/form-data; boundary=b"
PART = b"--b\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"

CALLS = {
    "30000 x 30000": ("image/png", lambda: bomb(30_000, 30_000, 0)),
    "50 megapixels of colour": ("image/png", lambda: bomb(7071, 7071, 2)),
    "25 megapixels of colour": ("image/png", lambda: bomb(5000, 5000, 6)),
    "50 megapixels of grey": ("image/png", lambda: bomb(7071, 7071, 0)),
    "cut WebP": ("image/webp", lambda: damaged("WEBP", 5000, quality=10, method=0)[:-999]),
    "damaged JPEG": ("image/jpeg", lambda: damaged("JPEG", 7000)),
    "damaged progressive JPEG": (
        "image/jpeg",
        lambda: damaged("JPEG", 4000, progressive=True, subsampling=0),
    ),
    "20 MB of chunks": (
        "image/png",
        lambda: png()[:33] + (bytes(4) + b"abCd" + bytes(4)) * 1_600_000 + png()[33:],
    ),
    "20 MB of nothing": ("image/png", lambda: b"\x89PNG\r\n\x1a\n" + bytes(19_990_000)),
    "a byte too many": ("image/png", lambda: bytes(20_000_001)),
    "empty objects": (JSON, lambda: b'{"images": [' + b"{}," * 6_600_000 + b"{}]}"),
    "empty lists": (JSON, lambda: b'{"images": [' + b"[]," * 6_600_000 + b"[]]}"),
    "brackets": (JSON, lambda: b"[" * 19_990_000),
    "base64": (JSON, lambda: b'{"images":[{"base64":"' + b"A" * 19_990_000 + b'"}]}'),
    "no base64": (JSON, lambda: b'{"images":[{"base64":"' + b"?" * 19_990_000 + b'"}]}'),
    "a file that is none": (FORM, lambda: PART + bytes(19_990_000) + b"\r\n--b--\r\n"),
    "a form of line ends": (FORM, lambda: PART + b"\r\n" * 9_990_000),
    "a form of boundaries": (FORM, lambda: PART + b"\r\n--" * 4_990_000),
    "a gzip bomb": ("gzip", lambda: zlib_gzip(bytes(1 << 20), 1000)),
}


def zlib_gzip(block: bytes, times: int) -> bytes:
    """Pack a block many times over: a gigabyte in a megabyte."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(block) for _ in range(times)) + packer.flush()


@pytest.mark.parametrize(("kind", "make"), CALLS.values(), ids=CALLS)
def test_a_refused_call_costs_little_memory(service, kind, make):
    client, pid = service
    body = make()
    idle = memory_mb(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the highest so far
    headers = {"content-type": kind}
    if kind == "gzip":
        headers = {"content-type": "image/png", "content-encoding": "gzip"}
    response = client.post("/embed", content=body, headers=headers)
    assert 400 <= response.status_code < 500, response.text
    assert memory_mb(pid, "VmHWM") - idle < LIMIT_MB


def flat(width: int, height: int) -> bytes:
    """Give a grey PNG of one colour: few bytes, many pixels."""
    return png(Image.new("L", (width, height)))


def test_one_call_of_many_refused_images_costs_no_more_than_one(service):
    client, pid = service
    body = bomb(5000, 5000, 6)
    idle = memory_mb(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    response = client.post("/embed", files=[("file", body)] * 8)
    assert [error["code"] for error in response.json()["errors"]] == ["undecodable_image"] * 8
    assert memory_mb(pid, "VmHWM") - idle < LIMIT_MB


@pytest.mark.parametrize("path", ["/embed", "/attention?render=overlay"])
def test_large_pictures_are_held_one_at_a_time_and_let_go(service, path):
    client, pid = service
    body = flat(7000, 7000)
    idle = memory_mb(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    response = client.post(path, files=[("file", body)] * 6)
    assert response.status_code == 200, response.text
    assert response.json()["errors"] == []
    whole = 7000 * 7000 * 5 / 2**20  # grey, and as Pillow keeps RGB
    assert memory_mb(pid, "VmHWM") - idle < 2 * whole + LIMIT_MB
    assert memory_mb(pid, "VmRSS") - idle < LIMIT_MB


def test_many_refused_calls_leave_nothing_behind(service):
    client, pid = service
    body = damaged("PNG", 1500)
    before = memory_mb(pid, "VmRSS")
    for _ in range(60):
        response = client.post("/embed", content=body, headers={"content-type": "image/png"})
        assert response.status_code == 422
    assert memory_mb(pid, "VmRSS") - before < LIMIT_MB
