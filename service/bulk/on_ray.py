"""Shards on a Ray cluster: an engine a GPU, or a node without GPUs; each embeds whole shards.

Nodes read the pictures and write the shards themselves, so both must lie where every node finds
them under the same path. A shard is written by one rename: what Ray runs again is written again,
never twice.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray
from ray.exceptions import RayError

from service.bulk.embedder import BatchEmbedder, Wanted
from service.bulk.listing import LISTING, load_listing
from service.bulk.run import Done, embed_shards
from service.bulk.shards import Recipe, Shards

OBJECT_STORE_BYTES = 200 * 2**20
"""Memory for what passes between nodes: numbers of shards. Ray would take a third of all."""


class Resources(NamedTuple):
    """How many engines a cluster holds, and what each gets."""

    num_actors: int
    num_cpus: int
    num_gpus: int


class ShardEmbedder:
    """An actor: an engine that embeds the shards it is given."""

    def __init__(self, wanted: Wanted, out: Path, recipe: Recipe, num_cpus: int) -> None:
        """Load the model and the list of pictures."""
        os.environ["ESVIT_THREADS"] = str(num_cpus)
        self._embedder = BatchEmbedder(wanted)
        self._shards = Shards(out, load_listing(out / LISTING), recipe)

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Embed the shards of a column `shard`; give what was done."""
        numbers = [int(number) for number in batch["shard"]]
        steps = list(embed_shards(self._embedder, self._shards, numbers))
        return {name: np.array([getattr(step, name) for step in steps]) for name in Done._fields}


def embed_on_ray(
    address: str, wanted: Wanted, shards: Shards, numbers: Sequence[int]
) -> Iterator[Done]:
    """Embed shards on a cluster.

    Args:
        address: The cluster's address, "auto" for the one that this machine belongs to, or "local"
            to start one on this machine.
        wanted: What is asked of every picture.
        shards: The shards.
        numbers: Which of them.

    Yields:
        What was done, after every shard.

    Raises:
        ConnectionError: if there is no cluster.
        OSError: if a shard fails on a node.
    """
    _join(address)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        out = shards.out.absolute()
        resources = share(ray.nodes(), len(numbers))
        rows = ray.data.from_items(
            [{"shard": number} for number in numbers], override_num_blocks=len(numbers)
        ).map_batches(
            ShardEmbedder,
            fn_constructor_args=(wanted, out, shards.recipe, resources.num_cpus),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=resources.num_actors),
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus,
        )
        for row in rows.iter_rows():
            yield Done(int(row["num_images"]), int(row["num_failed"]))
    except RayError as error:
        raise OSError(f"Ray: {str(error).strip().splitlines()[-1]}") from error
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    """Join the cluster, or start one on this machine; nodes get our settings."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it must not report home
    ours = {name: value for name, value in os.environ.items() if name.startswith("ESVIT_")}
    if address == "local":
        ray.init(
            "local",
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=OBJECT_STORE_BYTES,
            runtime_env={"env_vars": ours},
        )
    else:
        ray.init(address, log_to_driver=False, runtime_env={"env_vars": ours})


def share(nodes: Sequence[Mapping[str, Any]], num_shards: int) -> Resources:
    """Divide a cluster: an actor a GPU if there are any, else one for each node.

    Args:
        nodes: What `ray.nodes()` says of them.
        num_shards: No more actors than this have work.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpu = [node for node in alive if node.get("GPU", 0) >= 1]
    if with_gpu:
        num_actors = sum(int(node["GPU"]) for node in with_gpu)
        num_cpus = min(int(node.get("CPU", 1) // node["GPU"]) for node in with_gpu)
        return Resources(min(num_actors, num_shards), max(1, num_cpus), 1)
    with_cpu = [node for node in alive if node.get("CPU", 0) >= 1]
    num_cpus = min(int(node["CPU"]) for node in with_cpu)
    return Resources(min(len(with_cpu), num_shards), num_cpus, 0)
