"""Command: damage good inputs until something breaks that may not.

    python -m tests.fuzz                          every target, a minute each
    python -m tests.fuzz image --seconds 600

What breaks is written to `fuzz-TARGET.bin` and shown; the exit code is 1 then.
"""

import argparse
import logging
import os
import random
import sys
import time
import warnings
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target, holds

NUMBERS = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1"]


def damage(data: bytes, seeds: list[bytes], rng: random.Random) -> bytes:
    """Change a few bytes, cut, repeat, splice, or write a number that parsers trip over."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            changed[at : at + 4] = rng.choice(NUMBERS)
        elif kind == 3:
            del changed[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            changed[at:at] = changed[at : at + rng.randrange(1, 64)] * rng.randrange(1, 5)
        else:
            other = rng.choice(seeds)
            start = rng.randrange(len(other))
            changed[at:at] = other[start : start + rng.randrange(1, 64)]
    return bytes(changed)


def fuzz(name: str, target: Target, seconds: float, seed: int) -> int:
    """Damage and run until the time is over; gives how often it ran, raises what broke."""
    rng, num_runs, until = random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        data = damage(rng.choice(target.seeds), target.seeds, rng)
        num_runs += 1
        try:
            holds(target, data)
        except BaseException:
            Path(f"fuzz-{name}.bin").write_bytes(data)
            raise
    return num_runs


def silence() -> None:
    """Keep what libraries say of damaged input, thousands of lines, off the terminal."""
    logging.disable()
    warnings.simplefilter("ignore")
    sys.stderr = os.fdopen(os.dup(2), "w")  # Python's own words still come,
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff's go to what is descriptor 2 by now


def main() -> int:
    """Fuzz what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", nargs="?", choices=sorted(TARGETS), help="one of them; else all")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    arguments = parser.parse_args()
    silence()
    names = [arguments.target] if arguments.target else sorted(TARGETS)
    for name in names:
        num_runs = fuzz(name, TARGETS[name], arguments.seconds, arguments.seed)
        sys.stdout.write(f"{name}: {num_runs} inputs, nothing broke\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
