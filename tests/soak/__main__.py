"""Command: 100 clients for 20 seconds, then 5,000 calls of every kind, against the default model.

    python -m tests.soak

Shows what was measured; the exit code is 1 if a promise of docs/operations.md did not hold.
"""

import argparse
import signal
import sys

import httpx

from tests.service.test_main import read_log_until, start
from tests.soak.load import ALLOWED, MIXED, SOON_S, footprint, mixed, overload

MAX_LIVEZ_S, MAX_GROWTH_MB = 1.0, 50.0


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--calls", type=int, default=5000)
    chosen = parser.parse_args()
    with start("--port", "0", "--log-level", "info") as process:
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
        process.send_signal(signal.SIGTERM)
        code = process.wait(SOON_S)
    holds = {
        "only 200, 429 and 503": set(found.statuses) <= ALLOWED,
        "every refusal has Retry-After": not found.without_retry_after,
        f"/livez under {MAX_LIVEZ_S} s": found.slowest_livez_s < MAX_LIVEZ_S,
        "the first call after it is answered": found.first_status == 200,
        "only 200, 404 and 4xx of bad images": max(statuses) < 500,
        f"memory grows less than {MAX_GROWTH_MB} MB": after[0] - before[0] < MAX_GROWTH_MB,
        "no file stays open": after[1] <= before[1] + 2,
        "ends with 0": code == 0,
    }
    for promise, kept in holds.items():
        print("held  " if kept else "BROKEN", promise)
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
