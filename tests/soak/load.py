"""Load for a running service: more clients than it can serve, and calls of every kind."""

import asyncio
import itertools
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import httpx

from tests.service.pictures import jpeg, png, scene

SOON_S = 60.0
ALLOWED = {200, 429, 503}

PICTURE = jpeg(scene(300, 200))
FORM = {"files": {"file": PICTURE}}

MIXED = {
    "a form": ("/embed", FORM),
    "a raw body": ("/embed", {"content": PICTURE, "headers": {"content-type": "image/jpeg"}}),
    "several": ("/embed?output=last_blocks", {"files": [("file", PICTURE)] * 3}),
    "regions": ("/regions?encoding_format=base64", FORM),
    "attention": ("/attention?render=overlay", FORM),
    "a pair": ("/correspond", {"files": {"source": PICTURE, "target": png(scene())}}),
    "an undecodable one": ("/embed", {"files": {"file": PICTURE[:500]}}),
    "no images": ("/embed", {"json": {"images": []}}),
    "no JSON": ("/embed", {"content": b"{", "headers": {"content-type": "application/json"}}),
    "nowhere": ("/nowhere", FORM),
}
"""A call of every kind: its path and what httpx sends."""


class Overload(NamedTuple):
    """What came of an overload.

    Attributes:
        statuses: Answers by status.
        without_retry_after: Refusals that did not say when to try again.
        slowest_livez_s: The longest that `/livez` took meanwhile.
        first_status: Of the first call after it.
    """

    statuses: Counter[int]
    without_retry_after: int
    slowest_livez_s: float
    first_status: int


class Reloads(NamedTuple):
    """What came of reloads: answers by status, megabytes of memory after each."""

    statuses: Counter[int]
    memory: list[float]


def overload(url: str, *, num_clients: int, num_calls: int, seconds: float) -> Overload:
    """Let many clients call at once and without rest.

    Args:
        url: The service.
        num_clients: Each with a connection of its own.
        num_calls: Calls that each client makes at least.
        seconds: How long they go on at least.
    """
    return asyncio.run(_overload(url, num_clients, num_calls, seconds))


async def _overload(url: str, num_clients: int, num_calls: int, seconds: float) -> Overload:
    statuses: Counter[int] = Counter()
    slowest_s, without = 0.0, 0
    until = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=num_clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=SOON_S, limits=limits) as client:

        async def call() -> None:
            nonlocal without
            for number in itertools.count():
                if number >= num_calls and time.monotonic() > until:
                    return
                answer = await client.post("/embed", files=[("file", PICTURE)] * 4)
                statuses[answer.status_code] += 1
                without += answer.status_code != 200 and "retry-after" not in answer.headers

        async def watch() -> None:
            nonlocal slowest_s
            async with httpx.AsyncClient(base_url=url, timeout=SOON_S) as other:
                while True:
                    started = time.monotonic()
                    (await other.get("/livez")).raise_for_status()
                    slowest_s = max(slowest_s, time.monotonic() - started)
                    await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(call() for _ in range(num_clients)))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        if watching.done() and not watching.cancelled():
            watching.result()  # the watch itself failed
        first = await client.post("/embed", **FORM)
    return Overload(statuses, without, slowest_s, first.status_code)


def mixed(client: httpx.Client, num_calls: int) -> Counter[int]:
    """Make calls of every kind in turn; gives the answers by status."""
    statuses: Counter[int] = Counter()
    for path, content in itertools.islice(itertools.cycle(MIXED.values()), num_calls):
        statuses[client.post(path, **content).status_code] += 1
    return statuses


def reload(url: str, process: subprocess.Popen[str], model: Path, times: int) -> Reloads:
    """Replace the model file by its like, again and again, under calls of every kind.

    Args:
        url: The service.
        process: It, to be told of the new file.
        model: The file that it serves.
        times: How often.
    """
    statuses: Counter[int] = Counter()
    memory: list[float] = []
    ends = threading.Event()

    def call() -> None:
        with httpx.Client(base_url=url, timeout=SOON_S) as client:
            while not ends.is_set():
                statuses.update(mixed(client, len(MIXED)))

    calling = threading.Thread(target=call)
    calling.start()
    try:
        with httpx.Client(base_url=url, timeout=SOON_S) as client:
            for _ in range(times):
                _reload_once(client, process, model)
                memory.append(_settled_mb(process.pid))
    finally:
        ends.set()
        calling.join()
    return Reloads(statuses, memory)


def _reload_once(client: httpx.Client, process: subprocess.Popen[str], model: Path) -> None:
    """Put a copy in the file's place, and wait until it is served."""
    before = client.get("/info").json()["loaded_at"]
    copy = Path(shutil.copy(model, model.with_suffix(".new")))
    copy.replace(model)
    process.send_signal(signal.SIGHUP)
    until = time.monotonic() + 10 * SOON_S
    while (info := client.get("/info").json())["loaded_at"] == before:
        assert info["reload_failed_at"] is None
        assert time.monotonic() < until
        time.sleep(0.1)


def _settled_mb(pid: int) -> float:
    """Give the least memory within a second: the old model may still be answering its last call."""
    seen = []
    for _ in range(10):
        time.sleep(0.1)
        seen.append(footprint(pid)[0])
    return min(seen)


def footprint(pid: int) -> tuple[float, int]:
    """Give the megabytes of memory and the number of open files of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    memory = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024
    return memory, len(list(Path(f"/proc/{pid}/fd").iterdir()))
