"""One bulk run, from its options to its summary: what is there, what is to do, who does it."""

import argparse
import contextlib
import fcntl
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from service.bulk.embedder import BatchEmbedder, Wanted
from service.bulk.files import remove_temporary
from service.bulk.listing import LISTING, list_pictures
from service.bulk.progress import Total, follow
from service.bulk.run import Done, embed_shards
from service.bulk.shards import ERRORS, FOLDER, Recipe, Shards, known_recipe, make_recipe
from service.model_file import read_model_info

logger = logging.getLogger(__name__)

LOCK = ".lock"


class Outcome(NamedTuple):
    """What there is after a run.

    Attributes:
        num_good: Pictures with a vector, of this run and those before.
        summary: What there is, in one line.
    """

    num_good: int
    summary: str


def run(options: argparse.Namespace) -> Outcome:
    """Embed what is not embedded yet.

    Raises:
        FileNotFoundError: if there are no pictures.
        ValueError: if the folder holds other vectors, or is being written by another run.
        ModelError: if the model cannot be used.
        OSError: as the file system does.
    """
    wanted = Wanted(
        model=options.model, output=options.output, fit=options.fit, regions=options.regions
    )
    info = read_model_info(wanted.settings().model)
    recipe = make_recipe(info, wanted, shard_size=options.shard_size)
    out = Path(options.out)
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    with _locked(out):
        _check_recipe(out, recipe)
        remove_temporary(out)
        remove_temporary(out / FOLDER)
        shards = Shards(out, list_pictures(options.source, out / LISTING), recipe)
        todo = [number for number in range(shards.count) if not shards.is_done(number)]
        total = _embed(wanted, shards, todo, options.ray)
        shards.remove_surplus()
        num_failed = shards.gather_errors()
    num_good = len(shards.listing) - num_failed
    return Outcome(num_good, _summary(shards, num_failed, total))


def _embed(wanted: Wanted, shards: Shards, todo: Sequence[int], ray: str | None) -> Total:
    """Embed the shards that are not there."""
    num_images = sum(end - start for start, end in map(shards.span, todo))
    logger.info("%d pictures, %d to do", len(shards.listing), num_images)
    total = Total(0, 0, 0.0)
    if todo:
        for total in follow(_steps(wanted, shards, todo, ray), num_images):  # noqa: B007  # the last
            pass
    return total


def _steps(wanted: Wanted, shards: Shards, todo: Sequence[int], ray: str | None) -> Iterator[Done]:
    """Embed shards on this machine or on Ray."""
    if ray is not None:
        from service.bulk.on_ray import embed_on_ray  # needs the extra

        yield from embed_on_ray(ray, wanted, shards, todo)
        return
    embedder = BatchEmbedder(wanted)
    try:
        yield Done(0, 0)  # from here on time counts: the model is loaded
        yield from embed_shards(embedder, shards, todo)
    finally:
        embedder.close()


def _check_recipe(out: Path, recipe: Recipe) -> None:
    """Refuse to mix vectors of two recipes in one folder."""
    known = known_recipe(out)
    if known is None:
        return
    for name, value in asdict(recipe).items():
        if known.get(name) != value:
            raise ValueError(
                f"{out} holds vectors with {name} {known.get(name)}, asked for is {value}; "
                "give another folder"
            )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder; the lock ends with the process, however it ends."""
    with (out / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another run is writing into {out}") from error
        yield


def _summary(shards: Shards, num_failed: int, total: Total) -> str:
    """Say in one line what there is now."""
    num_good = len(shards.listing) - num_failed
    parts = [f"{shards.out / FOLDER}: {num_good:,} pictures in {shards.count:,} files"]
    if num_failed:
        parts.append(f"{num_failed:,} failed, see {shards.out / ERRORS}")
    if total.num_images:
        parts.append(f"{total.num_images:,} done now at {total.images_per_s:.1f} images/s")
    return "; ".join(parts)
