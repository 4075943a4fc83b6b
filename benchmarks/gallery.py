"""How long the gallery in a folder takes to find pictures, and whether it finds the right ones.

    python -m benchmarks.gallery

Random vectors: nothing in them is easier to find than anything else. Milliseconds of one call of
the store, one at a time; recall is that of its ten best against NumPy's exact ten best.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.gallery.edge import EdgeStore
from service.gallery.store import About, Entry, Passport, Picture

TOP = 10
NUM_QUERIES = 100
BATCH = 500

Floats = NDArray[np.float32]


class Shape(NamedTuple):
    """How many pictures, regions of each, and features of a vector."""

    pictures: int
    regions: int
    dim: int


def main() -> None:
    """Fill two galleries, one of many pictures and one of many regions, and search in them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100_000, help="pictures of the first")
    parser.add_argument("--dim", type=int, default=768, help="features of a vector")
    parser.add_argument("--pictures-with-regions", type=int, default=5_000, help="of the second")
    parser.add_argument("--regions", type=int, default=49, help="regions of a picture there")
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder), asked.dim)
        embeddings = fill(store, Shape(asked.pictures, 1, asked.dim), rng)
        queries = unit(rng, NUM_QUERIES, asked.dim)
        search = times(lambda query: store.search(query[None], TOP, None)[0], queries)
        recall = np.mean([recall_of(store, query, embeddings) for query in queries])
        store.close()
        print(f"by picture, {asked.pictures:,} x {asked.dim}: {search}, recall@{TOP} {recall:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder), asked.dim)
        fill(store, Shape(asked.pictures_with_regions, asked.regions, asked.dim), rng)
        for num_asked in (1, 9):
            boxes = [unit(rng, num_asked, asked.dim) for _ in range(NUM_QUERIES // 5)]
            took = times(lambda box: store.search_regions(box, 80), boxes)
            about = f"{asked.pictures_with_regions:,} x {asked.regions} x {asked.dim}"
            print(f"by {num_asked} regions, {about}: {took}")
        store.close()


def open_store(folder: Path, dim: int) -> EdgeStore:
    """Begin a gallery of a model that is none."""
    passport = Passport(model="none", weights_sha256="0" * 64, preprocess={}, dim=dim)
    return EdgeStore(folder, passport)


def fill(store: EdgeStore, shape: Shape, rng: np.random.Generator) -> Floats:
    """Put pictures in, and give their embeddings (pictures, C)."""
    embeddings = []
    spent_s = 0.0
    for entries in batches(shape, rng):
        embeddings += [entry.embedding for entry in entries]
        started = time.perf_counter()
        store.put(entries)
        spent_s += time.perf_counter() - started
    speed = shape.pictures / spent_s
    print(f"{shape.pictures:,} pictures of {shape.regions} regions put in at {speed:.0f} a second")
    return np.stack(embeddings)


def batches(shape: Shape, rng: np.random.Generator) -> Iterator[list[Entry]]:
    """Make pictures of random vectors."""
    about = About("", 640, 480, "stretch", "0" * 64)
    for start in range(0, shape.pictures, BATCH):
        numbers = range(start, min(start + BATCH, shape.pictures))
        vectors = unit(rng, len(numbers) * (1 + shape.regions), shape.dim)
        parts = vectors.reshape(len(numbers), 1 + shape.regions, shape.dim)
        yield [
            Entry(Picture(id_of(number), about), part[0], part[1:], b"")
            for number, part in zip(numbers, parts, strict=True)
        ]


def id_of(number: int) -> str:
    """Give the id of a picture."""
    return f"00000000-0000-0000-0000-{number:012x}"


def unit(rng: np.random.Generator, count: int, dim: int) -> Floats:
    """Make (count, dim) random vectors of unit length."""
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def times(call: Callable[[Floats], object], queries: Floats | list[Floats]) -> str:
    """Say how long calls take, after one that is not counted."""
    call(queries[0])
    spent = []
    for query in queries:
        started = time.perf_counter()
        call(query)
        spent.append(1e3 * (time.perf_counter() - started))
    return f"median {np.median(spent):.1f} ms, 95 % within {np.percentile(spent, 95):.1f} ms"


def recall_of(store: EdgeStore, query: Floats, embeddings: Floats) -> float:
    """Give the share of the exact best that a search finds."""
    exact = np.argpartition(-(embeddings @ query), TOP)[:TOP]
    (found,) = store.search(query[None], TOP, None)
    return len({id_of(int(n)) for n in exact} & {item.picture.id for item in found}) / TOP


if __name__ == "__main__":
    main()
