"""Free drawings of many hands: what the model that ships was pretrained on.

Emoji of two vendors with one toned form of each, Open Clipart at emoji-like sizes, and some of
Fashion-MNIST's pictures. All of it may be used, changed and passed on by anyone, so the weights may
be too. Emoji and clip art that their own sets hold out are held out here.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from trainer.prepare import openclipart
from trainer.prepare.emoji import (
    TERMS,
    Drawing,
    Vendor,
    describe_terms,
    package,
    read_pictures,
    read_table,
)
from trainer.prepare.fashion_mnist import FashionMnist
from trainer.prepare.image_folder import Collection, Picture, Request
from trainer.prepare.packages import debian_folder, fetch

VENDORS: tuple[Vendor, ...] = ("google", "twitter")
LONGEST_SIDE = 160
"""To which clip art is shrunk, in pixels; views of it are of 64."""
CLOTHES_ONE_IN = 30


@dataclass(frozen=True, kw_only=True)
class Drawings(Request):
    """What the model that ships learnt from: 4,458 emoji, 6,845 clip arts, 2,002 clothes."""

    def collect(self, cache: Path) -> Collection:
        """Read the archives.

        Raises:
            FetchError: if one cannot be had.
        """
        archives = {vendor: fetch(package(vendor), cache) for vendor in VENDORS}
        emoji = {vendor: one_tone(read_table(path, vendor)) for vendor, path in archives.items()}
        folder = debian_folder(openclipart.PACKAGE, openclipart.INSTALLED, cache)
        clip_art = usable(sorted(folder.glob("*/**/*.png")))
        clothes = some_clothes(FashionMnist(out=self.out).collect(cache))

        def pictures() -> Iterator[Picture]:
            for vendor, path in archives.items():
                for picture in read_pictures(path, vendor, emoji[vendor]):
                    yield picture._replace(label="emoji")
            for picture in openclipart.read_pictures(folder, clip_art):
                file = f"{picture.concept}.png"
                yield picture._replace(label="clip-art", file=file, data=shrink(picture.data))
            yield from clothes

        return Collection(
            pictures=pictures(),
            num_pictures=sum(map(len, emoji.values())) + len(clip_art) + len(clothes),
            licences=describe_terms(VENDORS) + _LICENCES,
            origins=[f"{path.name} {TERMS[vendor].integrity}" for vendor, path in archives.items()],
        )


def one_tone(drawings: list[Drawing]) -> list[Drawing]:
    """Keep every plain form, and of each concept's toned forms one, by its digest."""
    chosen: dict[str, Drawing] = {}
    for drawing in drawings:
        if drawing.tones:
            best = chosen.setdefault(drawing.concept, drawing)
            chosen[drawing.concept] = min(best, drawing, key=lambda one: _number(one.codepoints))
    return [drawing for drawing in drawings if not drawing.tones] + list(chosen.values())


def usable(files: list[Path]) -> list[Path]:
    """Leave out copies, damaged files, and what is tiny, huge or narrower than 1 to 4."""
    kept: dict[bytes, Path] = {}
    for path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # only headers
                with Image.open(path) as image:
                    shorter, longer = sorted(image.size)
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
            continue
        if 24 <= shorter <= longer <= min(2000, 4 * shorter):
            kept.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
    return list(kept.values())


def shrink(data: bytes) -> bytes:
    """Shrink a picture to a longest side of 160 px, transparency included."""
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGBA")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


def some_clothes(collection: Collection) -> list[Picture]:
    """Take one training picture in 30, by its number's digest."""
    return [
        picture._replace(label="clothes")
        for picture in collection.pictures
        if picture.split == "train" and _number(picture.concept) % CLOTHES_ONE_IN == 0
    ]


def _number(name: str) -> int:
    """Give a name's number, the same everywhere."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


_LICENCES = f"""- **Open Clipart** ({openclipart.LICENCE}): drawings that their makers gave into the
  public domain (https://openclipart.org), shrunk to at most {LONGEST_SIDE} px.
- **Fashion-MNIST** (MIT): copyright 2017 Zalando SE (https://tech.zalando.com).
"""
