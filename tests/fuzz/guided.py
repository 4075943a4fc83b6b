"""Command: fuzz one target with atheris, which looks for inputs that reach code not yet reached.

    python -m tests.fuzz.guided image --seconds 600

What breaks is written by libFuzzer to `crash-...`; the exit code is not 0 then.
"""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "python_multipart", "service"]):
    from tests.fuzz.targets import TARGETS, holds


def main() -> None:
    """Hand a target and its seeds to atheris, which ends the process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    logging.disable()
    target = TARGETS[arguments.target]
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-"))  # atheris adds to it what it finds
    for index, seed in enumerate(target.seeds):
        (corpus / str(index)).write_bytes(seed)
    options = [f"-max_total_time={arguments.seconds:.0f}", "-rss_limit_mb=2048", "-close_fd_mask=2"]
    atheris.Setup([sys.argv[0], *options, os.fspath(corpus)], lambda data: holds(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
