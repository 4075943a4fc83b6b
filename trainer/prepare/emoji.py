"""Emoji as several vendors draw them: one concept in several styles, at 64 px.

The drawings come from the npm packages `emoji-datasource-<vendor>`. A concept is the emoji without
skin tones; all its tones and vendors are in one split, so held-out concepts are new to a model
that was trained on the others.
"""

import json
import logging
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from trainer.prepare.image_folder import Collection, Picture, Request, split_of
from trainer.prepare.packages import Package, fetch

logger = logging.getLogger(__name__)

Vendor = Literal["google", "twitter", "apple", "facebook"]
VERSION = "16.0.0"
TONES = frozenset(("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"))
"""The five skin tones' code points; alone they are swatches, no emoji, and left out."""


class Terms(NamedTuple):
    """A vendor's archive and what it allows.

    Attributes:
        integrity: Of the archive, as the registry gives it.
        licence: SPDX expression of the drawings.
        notice: Who made them, and on which terms.
        is_free: Whether they may be used, changed and passed on by anyone.
    """

    integrity: str
    licence: str
    notice: str
    is_free: bool


TERMS: dict[Vendor, Terms] = {
    "google": Terms(
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/j"
        "EQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "Apache-2.0",
        "Noto Emoji, copyright Google Inc., under the Apache License 2.0 "
        "(https://github.com/googlefonts/noto-emoji).",
        True,
    ),
    "twitter": Terms(
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1Rl"
        "N4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "CC-BY-4.0",
        "Twemoji, copyright Twitter, Inc. and other contributors, under CC-BY 4.0 "
        "(https://creativecommons.org/licenses/by/4.0/); whoever passes them on names the makers.",
        True,
    ),
    "apple": Terms(
        "sha512-dVYjsK0FnCry9F+PBtnivhG2K0xdwlmqYaSgiUtztU"
        "dAGPYiHYhZcVKvNBqC791g2qyEcFNTBO6utg4eQ3uLTw==",
        "LicenseRef-Apple-proprietary",
        "copyright Apple Inc.; no licence is given, commercial use is not allowed.",
        False,
    ),
    "facebook": Terms(
        "sha512-b9ZxJdB7nMWGckH1vyCjPSosaa6MJYuojPPFiQ0LmD"
        "IZS8vlG454XKcmTFKrXIMAA72O4MRJMYFhvWI8pjyciQ==",
        "NOASSERTION",
        "copyright Meta Platforms, Inc.; no clear licence is given.",
        False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Emoji(Request):
    """Emoji of several vendors, 64 px, transparent PNG: 3,776 by each, 1,906 without skin tones.

    Attributes:
        vendors: Whose drawings. Those of google and twitter may be used freely.
        skin_tones: Whether the toned forms of people and hands are taken too.
    """

    vendors: tuple[Vendor, ...] = ("google", "twitter")
    skin_tones: bool = True

    def collect(self, cache: Path) -> Collection:
        """Read the vendors' archives.

        Raises:
            ValueError: if a vendor is named twice, or none.
            FetchError: if an archive cannot be had.
        """
        if not self.vendors or len(set(self.vendors)) != len(self.vendors):
            raise ValueError(f"vendors are {list(self.vendors)}, expected one or more, each once")
        for vendor in self.vendors:
            if not TERMS[vendor].is_free:
                logger.warning("%s: %s", vendor, TERMS[vendor].notice)
        archives = {vendor: fetch(package(vendor), cache) for vendor in self.vendors}
        wanted = {
            vendor: [d for d in read_table(path, vendor) if self.skin_tones or not d.tones]
            for vendor, path in archives.items()
        }
        return Collection(
            pictures=(
                picture
                for vendor, path in archives.items()
                for picture in read_pictures(path, vendor, wanted[vendor])
            ),
            num_pictures=sum(len(drawings) for drawings in wanted.values()),
            licences=describe_terms(self.vendors),
            origins=[f"{path.name} {TERMS[vendor].integrity}" for vendor, path in archives.items()],
        )


class Drawing(NamedTuple):
    """An emoji that a vendor has drawn.

    Attributes:
        codepoints: Its own, lower case, joined by hyphens.
        concept: Those of the form without skin tones.
        tones: The skin tones it has, joined by hyphens; empty for none.
        category: A folder's name.
    """

    codepoints: str
    concept: str
    tones: str
    category: str


def package(vendor: Vendor) -> Package:
    """Name a vendor's archive."""
    name = f"emoji-datasource-{vendor}"
    return Package(
        registry="npm",
        name=name,
        version=VERSION,
        pattern=f"{name}-{VERSION}.tgz",
        integrity=TERMS[vendor].integrity,
    )


def read_table(archive: Path, vendor: Vendor) -> list[Drawing]:
    """List what a vendor has drawn.

    A toned form belongs to the concept that the table lists it under: a couple's code points
    without the tones are not those of the plain couple.
    """
    with tarfile.open(archive) as tar:
        file = tar.extractfile("package/emoji.json")
        assert file is not None
        table = json.load(file)
    drawings = []
    for entry in table:
        concept = entry["unified"].lower()
        if concept in TONES:
            continue
        category = "-".join(re.findall("[a-z]+", entry["category"].lower()))
        forms = [("", entry), *entry.get("skin_variations", {}).items()]
        drawings += [
            Drawing(form["unified"].lower(), concept, tones.lower(), category)
            for tones, form in forms
            if form[f"has_img_{vendor}"]
        ]
    return drawings


def read_pictures(archive: Path, vendor: Vendor, drawings: Sequence[Drawing]) -> Iterator[Picture]:
    """Take drawings out of an archive, in the archive's order."""
    wanted = {drawing.codepoints: drawing for drawing in drawings}
    folder = PurePosixPath(f"package/img/{vendor}/64")
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.parent != folder or path.stem not in wanted:
                continue
            drawing = wanted.pop(path.stem)
            file = tar.extractfile(member)
            assert file is not None
            yield Picture(
                file=f"{drawing.codepoints}__{vendor}.png",
                label=drawing.category,
                split=split_of(drawing.concept),
                concept=drawing.concept,
                variant=drawing.tones,
                vendor=vendor,
                licence=TERMS[vendor].licence,
                source=f"npm:{package(vendor).name}@{VERSION}/{path.relative_to('package')}",
                data=file.read(),
            )
    if wanted:
        raise ValueError(f"{archive.name} lacks {len(wanted)} drawings, e.g. {min(wanted)}")


def describe_terms(vendors: Sequence[Vendor]) -> str:
    """Say who made the drawings and what one may do with them."""
    lines = [
        f"- **{vendor}** ({TERMS[vendor].licence}): {TERMS[vendor].notice}" for vendor in vendors
    ]
    about = (
        f"Drawings unchanged from the npm packages `emoji-datasource-<vendor>` {VERSION} "
        "(their tables: MIT, copyright 2013 Cal Henderson). `manifest.csv` names the licence and "
        "the source of every file."
    )
    return "\n".join(["# Licences", "", about, "", *lines, ""])
