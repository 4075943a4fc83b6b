"""Command: 100 clients for 20 s, 5,000 calls of every kind, 20 reloads of the default model.

    python -m tests.soak

Shows what was measured; the exit code is 1 if a promise of docs/operations.md did not hold.
"""

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import httpx

from service.settings import DEFAULT_MODEL
from tests.service.test_main import read_log_until, start
from tests.soak.load import ALLOWED, MIXED, SOON_S, footprint, mixed, overload, reload

MAX_LIVEZ_S, MAX_GROWTH_MB = 1.0, 50.0

A_FEW = 5
"""Reloads, of which the least memory counts: it goes up and down with the calls under way."""


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--reloads", type=int, default=20)
    parser.add_argument("--engine", default="auto")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(shutil.copy(DEFAULT_MODEL, folder))
        holds = soak(parser.parse_args(), model)
    for promise, kept in holds.items():
        print("held  " if kept else "BROKEN", promise)
    return 0 if all(holds.values()) else 1


def soak(chosen: argparse.Namespace, model: Path) -> dict[str, bool]:
    """Run, show what was measured, and give each promise with whether it held."""
    options = ("--model", str(model), "--engine", chosen.engine, "--log-level", "info")
    with start(*options, "--port", "0") as process:
        port = int(read_log_until(process, r"running on http://127\.0\.0\.1:(\d+)")[1])
        process.stderr.close()
        url = f"http://127.0.0.1:{port}"
        found = overload(url, num_clients=chosen.clients, num_calls=1, seconds=chosen.seconds)
        print(f"{chosen.clients} clients: {dict(found.statuses)}, {found}")
        with httpx.Client(base_url=url, timeout=SOON_S) as client:
            mixed(client, 20 * len(MIXED))
            before = footprint(process.pid)
            statuses = mixed(client, chosen.calls)
            after = footprint(process.pid)
        print(f"{chosen.calls} calls {dict(statuses)}: from {before} to {after} MB, files")
        reloads = reload(url, process, model, chosen.reloads)
        shown = [round(memory) for memory in reloads.memory]
        print(f"{len(shown)} reloads under {dict(reloads.statuses)}: {shown} MB")
        process.send_signal(signal.SIGTERM)
        code = process.wait(SOON_S)
    added = min(reloads.memory[-A_FEW:]) - min(reloads.memory[:A_FEW])
    return {
        "only 200, 429 and 503": set(found.statuses) <= ALLOWED,
        "every refusal has Retry-After": not found.without_retry_after,
        f"/livez under {MAX_LIVEZ_S} s": found.slowest_livez_s < MAX_LIVEZ_S,
        "the first call after it is answered": found.first_status == 200,
        "only 200, 404 and 4xx of bad images": max(statuses) < 500,
        f"memory grows less than {MAX_GROWTH_MB} MB": after[0] - before[0] < MAX_GROWTH_MB,
        "no file stays open": after[1] <= before[1] + 2,
        "a reload drops no call": max(reloads.statuses) < 429,
        f"reloads add less than {MAX_GROWTH_MB} MB": added < MAX_GROWTH_MB,
        "ends with 0": code == 0,
    }


if __name__ == "__main__":
    sys.exit(main())
