"""How much of the raw engine's speed reaches a client over HTTP.

    python -m benchmarks.serving --engine onnxruntime --model models/swin_tiny_w7.onnx
    python -m benchmarks.serving --engine openvino --model models/swin_tiny_w7.onnx
    python -m benchmarks.serving --engine simulated --model models/swin_tiny_w7.onnx

Closed loop: 1, 8 and 32 clients, each sending a 100 KB JPEG and waiting for 768 floats before it
sends the next. The raw engine is measured first, in a process of its own, over the ways to call it;
the best of them, or the one asked for, is measured again before and after each measurement of the
service, and their mean is what the service is held against: a machine's speed drifts by more than
what is looked for.
`simulated` stands in for a GPU: a batch of n images takes 3 + 0.15 n ms and no CPU, which leaves
the serving itself to be seen.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from PIL import Image

from service.parity import PHOTOGRAPHS

IMAGE_SIZE = (500, 375)
IMAGE_BYTES = 100_000

Way = tuple[str, int, int, Callable[[], Callable[[], object]]]
"""A way to call an engine: its name, how many callers, images a call, and what makes the call."""


def make_jpeg() -> bytes:
    """Give a photograph of 500 x 375 as a JPEG of about 100 KB."""
    picture = Image.open(PHOTOGRAPHS[1]).convert("RGB").resize(IMAGE_SIZE, Image.Resampling.LANCZOS)
    for quality in range(80, 101):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        if buffer.tell() >= IMAGE_BYTES:
            break
    return buffer.getvalue()


# --- the raw engine -------------------------------------------------------------------------------


def raw_speed(engine: str, model: str, seconds: float, way: str | None) -> dict[str, float]:
    """Measure the engine alone: images/s by way of calling it, of all ways or of one."""
    ways = onnxruntime_ways(model) if engine == "onnxruntime" else openvino_ways(model)
    return {
        name: images_per_second(make_call(), callers, batch, seconds)
        for name, callers, batch, make_call in ways
        if way in (None, name)
    }


def onnxruntime_ways(model: str) -> Iterator[Way]:
    """One caller with two threads, and a caller a core on a shared session of one thread.

    Memory is laid out as ONNX Runtime does by itself, and as the service wants it.
    """
    import onnxruntime

    def make_call(threads: int, batch: int, *, reuses: bool) -> Callable[[], object]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_mem_reuse = reuses
        session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        pixels = random_pixels(batch, session.get_inputs()[0].shape[1])
        return lambda: session.run(["embedding"], {"pixels": pixels})

    sizes = ((2, 1, 1), (2, 1, 8), (1, 2, 1), (1, 2, 2))
    for (threads, callers, batch), reuses in product(sizes, (True, False)):
        name = f"{callers} callers x {threads} threads, batch {batch}"
        name += "" if reuses else ", no reuse of results"
        yield name, callers, batch, partial(make_call, threads, batch, reuses=reuses)


def openvino_ways(model: str) -> Iterator[Way]:
    """One stream of all threads, and a stream a core, in what a service chooses from."""
    from service import engine_openvino

    def make_call(precision: str, streams: int, batch: int) -> Callable[[], object]:
        options = {
            "INFERENCE_PRECISION_HINT": engine_openvino.HINTS[precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": 2,
        }
        compiled = engine_openvino.core().compile_model(model, "CPU", options)
        pixels = random_pixels(batch, compiled.inputs[0].partial_shape[1].get_length())
        local = threading.local()

        def call() -> None:
            if not hasattr(local, "request"):
                local.request = compiled.create_infer_request()
            local.request.infer({"pixels": pixels}, share_inputs=True, share_outputs=True)

        return call

    precisions = [
        name for name in ("fp32", "bf16") if name in engine_openvino.supported_precisions()
    ]
    for precision, streams, batch in product(precisions, (1, 2), (1, 4, 8)):
        yield (
            f"{precision}, {streams} streams, batch {batch}",
            streams,
            batch,
            partial(make_call, precision, streams, batch),
        )


def random_pixels(batch: int, side: int) -> np.ndarray:
    """Give pixels (batch, side, side, 3)."""
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)


def images_per_second(call, callers: int, batch: int, seconds: float) -> float:
    """Call from so many threads for so long."""
    call()
    done = [0] * callers
    stop = time.perf_counter() + seconds

    def loop(number: int) -> None:
        call()
        while time.perf_counter() < stop:
            call()
            done[number] += 1

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return batch * (sum(done) + callers) / (time.perf_counter() - started)


# --- the service ----------------------------------------------------------------------------------


@contextlib.contextmanager
def running_service(engine: str, model: str) -> Iterator[tuple[int, int]]:
    """Start the service; give its process id and port."""
    port = 8765
    environment = os.environ | {"ESVIT_MODEL": model, "ESVIT_PORT": str(port)}
    environment["ESVIT_LOG_LEVEL"] = "warning"
    module = "service"
    if engine == "simulated":
        module = "benchmarks.simulated_gpu"
    else:
        environment["ESVIT_ENGINE"] = engine
    process = subprocess.Popen([sys.executable, "-m", module], env=environment)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).read()
                break
            time.sleep(0.1)
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


async def closed_loop(port: int, jpeg: bytes, clients: int, seconds: float) -> list[float]:
    """Run so many clients for so long; give the latency of every call in seconds."""
    head = (
        "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(jpeg)}\r\n\r\n"
    )
    request = head.encode() + jpeg
    latencies: list[float] = []
    stop = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < stop:
            started = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
            fields = answer.lower().split(b"content-length: ", 1)[1]
            await reader.readexactly(int(fields.split(b"\r\n", 1)[0]))
            latencies.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return latencies


def load(port: int, clients: int, seconds: float) -> None:
    """Be the clients, in a process of their own; print the latencies as JSON."""
    import uvloop

    jpeg = make_jpeg()
    uvloop.run(closed_loop(port, jpeg, clients, min(1.0, seconds)))
    started = time.perf_counter()
    latencies = uvloop.run(closed_loop(port, jpeg, clients, seconds))
    print(json.dumps({"seconds": time.perf_counter() - started, "latencies": latencies}))


def memory_mb(pid: int) -> float:
    """Give the proportional set size of a process in MB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def cpu_seconds(pid: int) -> float:
    """Give the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_own_process(*arguments: str) -> dict:
    """Run a part of this benchmark by itself and read its JSON."""
    command = [sys.executable, "-m", "benchmarks.serving", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(arguments: argparse.Namespace) -> None:
    """Measure raw engine and service in one run and print the table."""
    shared = ["--engine", arguments.engine, "--model", arguments.model]
    shared += ["--seconds", str(arguments.seconds)]
    best = None if arguments.engine == "simulated" else choose_way(arguments.way, shared)
    print("clients  images/s     raw  of raw  p50 ms  p99 ms  PSS MB  CPU ms/image")
    ratios: dict[int, list[float]] = {clients: [] for clients in arguments.clients}
    with running_service(arguments.engine, arguments.model) as (pid, port):
        before = raw_again(best, shared)
        for _ in range(arguments.rounds):
            for clients in arguments.clients:
                row = ask(pid, port, clients, shared)
                after = raw_again(best, shared)
                beside = f"{'-':>7s} {'-':>7s}"
                if before is not None and after is not None:
                    raw = (before + after) / 2
                    ratios[clients].append(row.images_per_s / raw)
                    beside = f"{raw:7.1f} {ratios[clients][-1]:7.3f}"
                before = after
                print(f"{clients:7d} {row.images_per_s:9.1f} {beside} {row.rest}", flush=True)
    for clients, found in ratios.items():
        if found:
            print(
                f"{clients} clients: {median(found):.3f} of raw, median of {len(found)} "
                f"({min(found):.3f} to {max(found):.3f})"
            )


def choose_way(asked: str | None, shared: list[str]) -> str:
    """Measure and print the asked way to call the engine, or all; give the fastest."""
    wanted = ["--way", asked] if asked else []
    speeds = in_own_process("--part", "raw", *wanted, *shared)
    if not speeds:
        sys.exit(f"--way {asked}: there is no such way; a run without it lists all")
    for name, speed in speeds.items():
        print(f"raw, {name}: {speed:.1f} images/s")
    return max(speeds, key=lambda name: speeds[name])


def raw_again(way: str | None, shared: list[str]) -> float | None:
    """Measure the best way to call the engine once more, if there is one."""
    if way is None:
        return None
    return in_own_process("--part", "raw", "--way", way, *shared)[way]


class Row(NamedTuple):
    """What one measurement of the service found; the rest of it as it is printed."""

    images_per_s: float
    rest: str


def ask(pid: int, port: int, clients: int, shared: list[str]) -> Row:
    """Be so many clients for a while."""
    before = cpu_seconds(pid)
    result = in_own_process(
        "--part", "load", "--port", str(port), "--clients", str(clients), *shared
    )
    latencies = sorted(result["latencies"])
    cost = (cpu_seconds(pid) - before) / len(latencies) * 1e3
    cost *= result["seconds"] / (result["seconds"] + 1.0)  # the warm-up's share
    p50, p99 = 1e3 * median(latencies), 1e3 * latencies[int(0.99 * len(latencies))]
    rest = f"{p50:7.1f} {p99:7.1f} {memory_mb(pid):7.0f} {cost:10.2f}"
    return Row(len(latencies) / result["seconds"], rest)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--engine", choices=("onnxruntime", "openvino", "simulated"), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--way", help="of calling the raw engine, to hold against; the fastest")
    parser.add_argument("--part", choices=("raw", "load"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "raw":
        speeds = raw_speed(arguments.engine, arguments.model, arguments.seconds, arguments.way)
        print(json.dumps(speeds))
    elif arguments.part == "load":
        load(arguments.port, arguments.clients[0], arguments.seconds)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
