"""Command: embed a folder, tar shards or a list of pictures into parquet.

    python -m service.bulk IN -o OUT

Exit codes: 0 finished, with one line on standard output; 1 stopped by a fault, or finished without
a single vector; 2 for a request that cannot be met, with one line that says why; 130 interrupted.
However it ended, the same command goes on where it was.
"""

import argparse
import importlib.util
import logging
import sys
from collections.abc import Sequence
from typing import get_args

from service.command_line import warn_of_unknown_variables
from service.errors import ModelError
from service.preprocess import Fit

EXTRAS = {"pyarrow": "bulk", "ray": "ray"}
"""Packages that are asked for, and the extras that bring them."""

UNMET = (
    ValueError,
    ModelError,
    FileNotFoundError,
    NotADirectoryError,
    FileExistsError,
    ConnectionError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed what the command line says."""
    options = parser().parse_args(arguments)
    for package in ("pyarrow", "ray") if options.ray else ("pyarrow",):
        if importlib.util.find_spec(package) is None:
            return _fail(f"this needs {package}: pip install 'esvit[{EXTRAS[package]}]'", 2)
    from service.bulk.job import run  # needs the extra

    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    warn_of_unknown_variables()
    try:
        outcome = run(options)
    except UNMET as error:
        return _fail(str(error), 2)
    except (OSError, RuntimeError) as error:
        return _fail(f"stopped by a fault: {error}; the same command goes on", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on", 130)
    print(outcome.summary)  # noqa: T201  # the command's answer
    return 0 if outcome.num_good else 1


def parser() -> argparse.ArgumentParser:
    """Give the command line's parser."""
    made = argparse.ArgumentParser(
        prog="python -m service.bulk",
        description="Embed pictures into parquet. A run that was stopped goes on when the same "
        "command is given again. ESVIT_ENGINE, ESVIT_DEVICE, ESVIT_PRECISION and "
        "ESVIT_THREADS choose the engine, as for the service.",
    )
    made.add_argument("source", metavar="IN", help="folder, .tar files ('shards/*.tar'), or list")
    made.add_argument("-o", "--out", required=True, metavar="OUT", help="folder to write into")
    made.add_argument("--model", help="model file; else ESVIT_MODEL or the one that comes along")
    made.add_argument("--output", choices=("embedding", "last_blocks"), default="embedding")
    made.add_argument("--fit", choices=get_args(Fit), default="crop", help="what the model sees")
    made.add_argument("--regions", action="store_true", help="write region features as well")
    made.add_argument("--shard-size", type=_positive, default=2048, help="pictures a file")
    made.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster, auto, or local")
    return made


def _positive(text: str) -> int:
    """Read a number of at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _fail(message: str, code: int) -> int:
    """Say in one line what went wrong."""
    print(" ".join(message.split()), file=sys.stderr)  # noqa: T201  # the command's answer
    return code


if __name__ == "__main__":
    sys.exit(main())
