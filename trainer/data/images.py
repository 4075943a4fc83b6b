"""From bytes to an image, by the service's own decoder; what fails is listed and replaced.

Damaged, tiny and huge files and files that are no images must neither stop a run of days nor go
unnoticed: each is listed once in `bad_images.tsv`, and the next image takes its place. Too many of
them mean that something else is wrong, and the run stops.
"""

import fcntl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import ServiceError
from service.images import DecodedImage, ImageLimits, decode
from trainer.data.files import UnreadableImage
from trainer.data.sources import Source

TRAINING_LIMITS = ImageLimits(
    formats=("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"), max_decoded_bytes=400_000_000
)
"""Own data may come in more formats than strangers' requests, and be larger."""

BAD = (ServiceError, UnreadableImage, FileNotFoundError, PermissionError, IsADirectoryError)
"""Faults of one image; any other OSError is the storage's, and after some patience ends the run."""

NOT_BY_NAME = "no image by its name"
MIN_BAD_TO_STOP = 16
"""Fewer bad images never stop a run, whatever their share: half of four files is no evidence."""

_HEADER = "path\treason\n"
_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\\": "\\\\"})
_WAITS_S = (0.1, 1.0, 10.0)


class TooManyBadImages(ValueError):
    """More images are bad than the run accepts; the message gives the count and examples."""


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """Which images a run takes.

    Attributes:
        limits: Formats, pixels and aspect, checked before decoding.
        min_side: Shorter side in pixels below which an image is no picture.
        least_side: Shorter side below which decoding must not shrink (`augment.least_side`).
        max_bad_share: Share of bad images, 0 to 1, above which the run stops.
    """

    limits: ImageLimits = TRAINING_LIMITS
    min_side: int = 8
    least_side: int | None = None
    max_bad_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share is {self.max_bad_share}, expected 0 to 1")

    def decode(self, data: bytes) -> DecodedImage:
        """Decode a file.

        Raises:
            ServiceError: as the service's decoder does.
            UnreadableImage: if the image is tiny.
        """
        image = decode(data, self.limits, least_side=self.least_side)
        if min(image.width, image.height) < self.min_side:
            side = self.min_side
            raise UnreadableImage(f"image is {image.width}x{image.height}, under {side} pixels")
        return image


@dataclass
class BadImages:
    """The list of bad images of a run, in a file that all its processes share.

    Each process has its own copy of this object, and learns what others added when it adds itself.

    Attributes:
        path: The file, one line for each: name, tab, reason.
        num_images: How many images there are, 0 if unknown.
        max_share: Share of bad images above which `add` raises.
        names: Those that this process knows of.
        num_tried: How many images this process has decoded or found bad.
    """

    path: Path
    num_images: int
    max_share: float
    names: dict[str, str] = field(default_factory=dict)
    num_tried: int = 0
    _num_own: int = 0
    _bytes_read: int = 0

    def load(self) -> None:
        """Learn what an earlier start, or another process, has listed."""
        if self.path.exists():
            with self.path.open("rb") as file:
                self._learn(file.read())

    def add(self, name: str, reason: str) -> None:
        """List an image, once whoever finds it, and stop the run if there are too many.

        Raises:
            TooManyBadImages: if so.
        """
        self._num_own += 1
        self._append([(name, reason)])
        bad = {name: why for name, why in self.names.items() if why != NOT_BY_NAME}
        tried, share = self.num_tried, self.max_share
        # What one process meets is a sample; four deviations over the share are no accident.
        surely_above = self._num_own > share * tried + 4 * (share * tried) ** 0.5 + 4
        above = self.num_images and len(bad) > share * self.num_images
        if len(bad) >= MIN_BAD_TO_STOP and (above or surely_above):
            examples = "; ".join(f"{name} ({why})" for name, why in list(bad.items())[-3:])
            total = f" of {self.num_images}" if self.num_images else ""
            raise TooManyBadImages(
                f"{len(bad)}{total} images are bad, over {share:.1%} of those tried, "
                f"e.g. {examples}; all are listed in {self.path}"
            )

    def add_skipped(self, names: Iterable[str]) -> None:
        """List files that were left out because of their names; they do not count."""
        self._append([(name, NOT_BY_NAME) for name in names])

    def _append(self, entries: list[tuple[str, str]]) -> None:
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(self._bytes_read)
            self._learn(file.read())
            entries = [(_escape(name), _escape(reason)) for name, reason in entries]
            lines = [f"{n}\t{why}\n" for n, why in entries if n not in self.names]
            if not self._bytes_read:
                lines.insert(0, _HEADER)
            written = "".join(lines).encode()
            file.write(written)
            file.flush()
            self._learn(written)

    def _learn(self, data: bytes) -> None:
        """Take in what the file has from where this process stopped reading."""
        self._bytes_read += len(data)
        for line in data.decode(errors="replace").split("\n"):
            name, tab, reason = line.partition("\t")
            if tab and f"{line}\n" != _HEADER:
                self.names[name] = reason

    def __contains__(self, name: str) -> bool:
        return _escape(name) in self.names


def _escape(text: str) -> str:
    """Keep a name on one line and in its column, whatever bytes it has."""
    return text.translate(_ESCAPES).encode(errors="backslashreplace").decode()


@dataclass
class ImageReader:
    """Images of a source by index; a bad one is replaced by the next that is good."""

    source: Source
    rules: ImageRules
    bad: BadImages

    def load(self, i: int) -> tuple[int, DecodedImage]:
        """Decode image i, or the next good one; give its index too.

        Raises:
            TooManyBadImages: if more are bad than the rules allow, or all.
        """
        N = len(self.source)
        for candidate in (k % N for k in range(i, i + N)):
            name = self.source.name(candidate)
            if name in self.bad:
                continue
            self.bad.num_tried += 1
            try:
                return candidate, self.rules.decode(read_patiently(self.source.read, candidate))
            except BAD as error:
                self.bad.add(name, str(error))
        raise TooManyBadImages(f"none of {N} images can be read; see {self.bad.path}")


def read_patiently(
    read: Callable[[int], bytes], i: int, waits_s: tuple[float, ...] = _WAITS_S
) -> bytes:
    """Read image i; if the storage fails, wait and try again before giving up."""
    for wait_s in waits_s:
        try:
            return read(i)
        except BAD:
            raise
        except OSError:
            time.sleep(wait_s)
    return read(i)


def open_bad_images(folder: Path, source: Source, rules: ImageRules) -> BadImages:
    """Open the list of a run's folder, with what is known already."""
    bad = BadImages(folder / "bad_images.tsv", len(source), rules.max_bad_share)
    bad.load()
    if source.index.skipped:
        bad.add_skipped(source.index.skipped)
    return bad
