"""How much of the raw engine's speed a bulk run reaches, files to parquet.

    python -m benchmarks.bulk --engine onnxruntime --model models/swin_tiny_w7.onnx
    python -m benchmarks.bulk --engine openvino --model models/swin_tiny_w7.onnx

The pictures are JPEGs of 500 x 375 and 100 KB. The raw engine is measured in the same run, before
and after, in a process of its own, over the ways to call it (`benchmarks.serving`); its best is the
reference. Loading the model is left out of both.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.serving import in_own_process, make_jpeg


def raw_best(arguments: argparse.Namespace) -> float:
    """Give the raw engine's images/s, its best over the ways to call it."""
    shared = ["--engine", arguments.engine, "--model", arguments.model]
    speeds = in_own_process("--part", "raw", *shared, "--seconds", str(arguments.seconds))
    return max(speeds.values())


def bulk_speed(arguments: argparse.Namespace, pictures: Path, out: Path) -> tuple[float, float]:
    """Embed the pictures: images/s, and the seconds that the same command takes once more."""
    command = [sys.executable, "-m", "service.bulk", str(pictures), "-o", str(out)]
    command += ["--model", arguments.model, "--shard-size", str(arguments.shard_size)]
    environment = os.environ | {"ESVIT_ENGINE": arguments.engine}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    speed = re.search(r"at ([\d.]+) images/s", done.stdout)
    assert speed, done.stdout
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return float(speed[1]), time.perf_counter() - started


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--engine", choices=("onnxruntime", "openvino"), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--shard-size", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each way to call it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        jpeg = make_jpeg()
        for number in range(arguments.images):
            (pictures / f"{number}.jpg").write_bytes(jpeg)
        before = raw_best(arguments)
        speed, again_s = bulk_speed(arguments, pictures, Path(folder, "out"))
        after = raw_best(arguments)
    raw = max(before, after)
    print(f"raw engine, best: {before:.1f} before, {after:.1f} images/s after")
    print(f"bulk, {arguments.images} pictures: {speed:.1f} images/s, {speed / raw:.2f} of raw")
    print(f"the same command once more: {again_s:.2f} s")


if __name__ == "__main__":
    main()
