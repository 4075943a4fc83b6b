"""On a Ray of two CPUs, which the command starts itself; and how clusters are divided."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from service.bulk.__main__ import main

pytest.importorskip("ray", reason="Ray is not installed: the extra `ray` brings it")

ROOT = Path(__file__).parents[3]


def node(cpus, gpus=0, alive=True):
    return {
        "Alive": alive,
        "Resources": {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {}),
    }


@pytest.mark.slow
def test_a_cluster_is_divided_by_gpus_or_by_nodes():
    from service.bulk.on_ray import share

    assert share([node(8), node(4), node(0), node(8, alive=False)], 100) == (2, 4, 0)
    assert share([node(16, 4), node(8, 1), node(64)], 100) == (5, 4, 1)
    assert share([node(2, 4)], 100) == (4, 1, 1)
    assert share([node(8)] * 9, 3) == (3, 8, 0)


def in_process(*arguments):
    """Run something in a process of its own: Ray leaves threads and warnings behind."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_ray_gives_what_one_machine_gives(pictures, tmp_path):
    options = ["--shard-size", "3"]
    assert main([str(pictures), "-o", str(tmp_path / "alone"), *options]) == 0
    command = ["-m", "service.bulk", pictures, "-o", tmp_path / "ray", "--ray", "local", *options]
    done = in_process(*command)
    assert done.returncode == 0, done.stderr
    assert "7 done now" in done.stdout
    alone, ray = (pq.read_table(tmp_path / name / "embeddings") for name in ("alone", "ray"))
    for column in ("id", "path", "sha256", "width", "height", "model"):
        assert alone[column].to_pylist() == ray[column].to_pylist()
    first, second = (np.stack(table["embedding"].to_numpy()) for table in (alone, ray))
    np.testing.assert_allclose(second, first, atol=1e-6)
    assert pq.read_table(tmp_path / "ray" / "errors.parquet").num_rows == 1


PIPELINE = """
import sys, ray, ray.data
from service.bulk.embedder import BatchEmbedder, Wanted
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20)
(
    ray.data.read_binary_files(sys.argv[1] + "/deep", include_paths=True)
    .map_batches(BatchEmbedder, fn_constructor_args=(Wanted(),), batch_size=2, concurrency=1)
    .write_parquet(sys.argv[2])
)
"""


@pytest.mark.slow
def test_the_batch_callable_is_at_home_in_a_pipeline_of_ray_data(pictures, tmp_path):
    done = in_process("-c", PIPELINE, pictures, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert {Path(row["path"]).name for row in rows} == {"a.JPG", "z.png"}
    assert {row["error"] for row in rows} == {""}
