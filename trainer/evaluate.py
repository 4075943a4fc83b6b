"""Command: what a network has learnt, measured on your images.

`python -m trainer.evaluate knn --checkpoint FILE --data DIR`, or `--model FILE.onnx`: what is
evaluated is what is served. One JSON object goes to standard output, everything else to standard
error. Features are kept in files, so the same command goes on where it was interrupted.

Exit codes: 0 measured; 2 the request cannot be met, one line says why; 130 interrupted.
"""

import json
import sys
from typing import Annotated, Any

import tyro
from rich.console import Console

from trainer.command_line import read_arguments
from trainer.evaluation.classify import measure_knn
from trainer.evaluation.config import (
    CorrespondenceConfig,
    KnnConfig,
    LinearConfig,
    RetrievalConfig,
    ThroughputConfig,
)
from trainer.evaluation.correspondence import measure_correspondence
from trainer.evaluation.frozen import open_subject
from trainer.evaluation.linear import measure_linear
from trainer.evaluation.retrieval import measure_retrieval
from trainer.evaluation.throughput import measure_throughput
from trainer.monitor import set_up_logging

Config = (
    Annotated[KnnConfig, tyro.conf.subcommand("knn")]
    | Annotated[LinearConfig, tyro.conf.subcommand("linear")]
    | Annotated[RetrievalConfig, tyro.conf.subcommand("retrieval")]
    | Annotated[CorrespondenceConfig, tyro.conf.subcommand("correspondence")]
    | Annotated[ThroughputConfig, tyro.conf.subcommand("throughput")]
)


def measure(config: Config, console: Console) -> dict[str, Any]:  # JSON
    """Measure what a config asks for.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the request cannot be met.
        OSError: if the cache cannot be written.
    """
    if isinstance(config, ThroughputConfig):
        return measure_throughput(config, console)
    subject = open_subject(config, console)
    match config:
        case KnnConfig():
            found = measure_knn(config, subject)
        case LinearConfig():
            found = measure_linear(config, subject)
        case RetrievalConfig():
            found = measure_retrieval(config, subject)
        case CorrespondenceConfig():
            found = measure_correspondence(config, subject)
    about = {"data": config.data, "max_images": config.max_images, "seed": config.seed}
    return {**found, **about, "network": subject.describe()}


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    config: Config = read_arguments(
        lambda: tyro.cli(Config, args=argv, prog="python -m trainer.evaluate")
    )
    console = set_up_logging(is_main=True)
    try:
        answer = measure(config, console)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where it was\n")
        return 130
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
