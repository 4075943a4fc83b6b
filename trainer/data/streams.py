"""Tar shards that can only be read from beginning to end: from a command, over HTTP, or compressed.

`pipe:COMMAND` reads what a shell command writes, as in WebDataset. Every epoch has its own order of
shards, which are dealt out to the workers of all ranks; a buffer mixes the images within a worker.

What is exact on resuming: with the same number of ranks, workers and shards, unchanged, and with
the run's `bad_images.tsv`, the batches that follow are the same bit for bit. A worker reads its
shards of the epoch again up to the position and decodes nothing on the way; that costs reading time
of one epoch at most. With other numbers the run goes on at the same step of the same epoch, but in
another order: some images of that epoch come twice, others not at all.
"""

import hashlib
import http.client
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from trainer.data.archives import split_key
from trainer.data.files import IMAGE_SUFFIXES, MAX_FILE_BYTES
from trainer.data.images import BAD, BadImages, ImageRules, TooManyBadImages
from trainer.data.loader import Sample, ViewMaker
from trainer.data.sampler import SHARDS_STREAM

_HTTP_TIMEOUT_S = 60
_WAITS_S = (0.1, 1.0, 10.0)

CERTAIN = 20
"""Known bad images in a row, for each there is, after which no good one can be among them: were it
one, it would be missed so often once in e^20 times."""


class StreamedImage(NamedTuple):
    """One image of a shard: its name, its bytes, and which reading of the shards it is from."""

    name: str
    data: bytes
    turn: int


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Which shards are read where, and how images are dealt into steps.

    Attributes:
        paths: Of all shards: files, addresses or commands.
        seed: Of the run; the same on all ranks.
        batch: Images a step on one rank.
        images_per_epoch: How many images over all ranks are called an epoch.
        rank: Number of this process.
        world_size: How many there are.
        mix: Images that a worker holds to mix them.
    """

    paths: tuple[str, ...]
    seed: int
    batch: int
    images_per_epoch: int
    rank: int = 0
    world_size: int = 1
    mix: int = 1000

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"images_per_epoch is {self.images_per_epoch}, expected at least one global batch "
                f"of {self.batch * self.world_size}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps that are called an epoch."""
        return self.images_per_epoch // (self.batch * self.world_size)

    def check_workers(self, num_workers: int) -> None:
        """Refuse more readers than there are shards.

        Raises:
            ValueError: if some worker would have none.
        """
        readers = max(1, num_workers) * self.world_size
        if readers > len(self.paths):
            most = len(self.paths) // self.world_size
            raise ValueError(
                f"{len(self.paths)} shards for {readers} readers ({self.world_size} ranks); "
                f"expected at most {most} workers a rank"
            )

    def images(self, epoch: int, slot: int, num_slots: int) -> Iterator[StreamedImage]:
        """Give the images of one of num_slots readers in an epoch, mixed, without end."""
        rng = np.random.default_rng([SHARDS_STREAM, self.seed, epoch, 0, slot])
        held: list[StreamedImage] = []
        for image in self._in_order(epoch, slot, num_slots):
            held.append(image)
            if len(held) >= self.mix:
                chosen = int(rng.integers(len(held)))
                held[chosen], held[-1] = held[-1], held[chosen]
                yield held.pop()

    def _in_order(self, epoch: int, slot: int, num_slots: int) -> Iterator[StreamedImage]:
        for turn in count():
            rng = np.random.default_rng([SHARDS_STREAM, self.seed, epoch, 1, turn])
            order = rng.permutation(len(self.paths))[slot::num_slots]
            empty = True
            for shard in order.tolist():
                for name, data in read_shard(self.paths[shard]):
                    empty = False
                    yield StreamedImage(name, data, turn)
            if empty:
                raise ValueError(f"no image in {[self.paths[shard] for shard in order][:3]}")


class ViewStream(IterableDataset[Sample]):
    """Samples from shards, beginning at any step."""

    def __init__(
        self, shards: Shards, maker: ViewMaker, rules: ImageRules, bad: BadImages, *, step: int
    ) -> None:
        self.shards, self.maker = shards, maker
        self.rules, self.bad = rules, bad
        self.step = step

    def __iter__(self) -> Iterator[Sample]:
        """Give this worker's samples.

        Batches are taken from the workers in turn, beginning with worker 0. So that it plays the
        part that has its turn at the first step, parts are shifted by the step.
        """
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        part = (worker + self.step) % num_workers
        slots = (self.shards.rank * num_workers + part, num_workers * self.shards.world_size)
        steps, batch = self.shards.steps_per_epoch, self.shards.batch
        step = self.step + worker
        while True:
            epoch = step // steps
            first = epoch * steps + (part - epoch * steps) % num_workers
            wanted = len(range(step, (epoch + 1) * steps, num_workers)) * batch
            skipped = (step - first) // num_workers * batch
            yield from self._samples(epoch, slots, skipped, wanted)
            step += wanted // batch * num_workers

    def _samples(
        self, epoch: int, slots: tuple[int, int], skipped: int, wanted: int
    ) -> Iterator[Sample]:
        """Pass over the good images that an earlier start has used, then make samples.

        Raises:
            TooManyBadImages: if these shards hold images, and none of them can be read.
        """
        num_passed = 0
        for image in self.shards.images(epoch, *slots):
            if wanted == 0:
                return
            if image.name in self.bad:
                num_passed += 1
                if num_passed > self.shards.mix + CERTAIN * len(self.bad.names):
                    raise TooManyBadImages(
                        f"none of a reader's images can be read, e.g. {image.name}; "
                        f"see {self.bad.path}"
                    )
                continue
            num_passed = 0
            if skipped > 0:
                skipped -= 1
                continue
            self.bad.num_tried += 1
            try:
                decoded = self.rules.decode(image.data)
            except BAD as error:
                self.bad.add(image.name, str(error))
                continue
            wanted -= 1
            digest = hashlib.blake2b(image.name.encode(errors="surrogateescape"), digest_size=8)
            words = (epoch, image.turn, int.from_bytes(digest.digest()))
            yield self.maker.make(decoded, image.name, words)


def read_shard(path: str, waits_s: tuple[float, ...] = _WAITS_S) -> Iterator[tuple[str, bytes]]:
    """Give name and bytes of a shard's images; if the stream breaks, begin anew and go on there.

    Raises:
        OSError: if it breaks again and again.
    """
    num_given = 0
    for wait_s in (*waits_s, None):
        try:
            for number, image in enumerate(_read_once(path)):
                if number >= num_given:
                    yield image
                    num_given += 1
            return
        except (OSError, http.client.HTTPException, tarfile.TarError, EOFError) as error:
            if wait_s is None:
                raise OSError(f"cannot read {path}: {error}") from error
            time.sleep(wait_s)


def _read_once(path: str) -> Iterator[tuple[str, bytes]]:
    with _open(path) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps all headers
            _, suffix = split_key(member.name)
            if member.isfile() and suffix in IMAGE_SUFFIXES and member.size <= MAX_FILE_BYTES:
                opened = archive.extractfile(member)
                if opened is not None:
                    yield f"{path}/{member.name}", opened.read()


@contextmanager
def _open(path: str) -> Generator[IO[bytes]]:
    """Open a shard for reading from its beginning."""
    if path.startswith("pipe:"):
        command = ["sh", "-c", path.removeprefix("pipe:")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield process.stdout
            process.stdout.read()  # what tar's end leaves over, so that the command may finish
            if process.wait() != 0:
                raise OSError(f"command ended with status {process.returncode}")
    elif path.startswith(("http://", "https://")):
        with urllib.request.urlopen(path, timeout=_HTTP_TIMEOUT_S) as response:
            yield response
            response.read()
            if response.length:  # cut where tar may have taken that for the archive's end
                raise OSError(f"{response.length} bytes of the answer are missing")
    else:
        with Path(path).open("rb") as file:
            yield file
