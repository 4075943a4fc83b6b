"""Command: what a network has learnt, as a picture.

`python -m trainer.visualize attention --model FILE.onnx IMAGE... --out FILE.png`, or with
`--checkpoint`, shows what heads attend to; `correspondence` draws lines between two images, or
between one and its mirrored, grey copy; `regions` colours regions by their principal components.
Equal commands give equal pictures.

Exit codes: 0 the picture is written, its path on standard output; 2 the request cannot be met.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image

from esvit.files import replacing
from service.preprocess import Fit
from trainer.command_line import read_arguments
from trainer.evaluation.config import NetworkConfig
from trainer.evaluation.correspondence import mirrored_copies
from trainer.evaluation.frozen import open_network
from trainer.evaluation.subject import Frozen
from trainer.figures.attention import draw_attention
from trainer.figures.correspondence import choose_lines, count_mirrored, draw_lines
from trainer.figures.regions import draw_regions
from trainer.figures.seen import Seen, look_at

PANELS = range(64, 1025)
"""Sides in pixels that a picture may be drawn with."""


@dataclass(frozen=True, kw_only=True)
class FigureConfig(NetworkConfig):
    """What is drawn.

    Attributes:
        images: Image files.
        out: The PNG file to write.
        fit: What of a picture is seen: its centre as published, or the whole of it.
        panel: Side in pixels with which each picture is drawn.
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    out: Path
    fit: Fit = "crop"
    panel: int = 320


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(FigureConfig):
    """What each head of the last block attends to, from the most focused to the most even.

    Attributes:
        panel: Side in pixels with which each picture is drawn.
        query: Point x, y in pixels of the picture whose region asks; the middle one if not given.
        pooled: Show the mean over all regions that ask, instead of one.
        heads: How many heads are shown at most, evenly chosen from the first to the last.
    """

    panel: int = 224
    query: tuple[float, float] | None = None
    pooled: tyro.conf.FlagCreatePairsOff[bool] = False
    heads: int = 6


@dataclass(frozen=True, kw_only=True)
class CorrespondenceConfig(FigureConfig):
    """Which region is which in two images, or in an image and its mirrored, grey copy.

    Attributes:
        top_k: How many of the most similar pairs are drawn.
        mutual_only: Whether only those are drawn that are each other's best match.
        seed: Of the copy's colours.
    """

    top_k: int = 20
    mutual_only: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RegionsConfig(FigureConfig):
    """What regions have in common, as colour: equal colours are equal features."""


Config = (
    Annotated[AttentionConfig, tyro.conf.subcommand("attention")]
    | Annotated[CorrespondenceConfig, tyro.conf.subcommand("correspondence")]
    | Annotated[RegionsConfig, tyro.conf.subcommand("regions")]
)


def draw(config: Config) -> Image.Image:
    """Draw the picture that is asked for.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the request cannot be met.
    """
    check(config)
    network = open_network(config)
    seen = [look_at(path, network.spec, config.fit, config.panel) for path in config.images]
    match config:
        case AttentionConfig():
            return attention(config, network, seen)
        case CorrespondenceConfig():
            return correspondence(config, network, seen)
        case RegionsConfig():
            regions = torch.cat([network.run(picture.pixels, "regions") for picture in seen])
            return draw_regions(seen, regions.numpy())


def check(config: Config) -> None:
    """Refuse what makes no sense, before any work.

    Raises:
        ValueError: if so.
    """
    if not config.images:
        raise ValueError("give an image")
    if config.panel not in PANELS:
        raise ValueError(f"panel is {config.panel}, expected {PANELS.start} to {PANELS.stop - 1}")
    if config.out.suffix.lower() != ".png" or not config.out.parent.is_dir():
        raise ValueError(f"out is {config.out}, expected a .png file in a folder that is there")
    match config:
        case AttentionConfig():
            if config.heads < 1 or (config.pooled and config.query is not None):
                raise ValueError("expected --heads of 1 or more, and not both --pooled and --query")
        case CorrespondenceConfig():
            if config.top_k < 1 or len(config.images) > 2:
                raise ValueError("expected one or two images, and --top-k of 1 or more")


def attention(config: AttentionConfig, network: Frozen, seen: list[Seen]) -> Image.Image:
    """Draw what heads attend to; raises ValueError if a point lies outside."""
    weights: list[NDArray[np.float32]] = []
    asking: list[tuple[float, float] | None] = []
    for picture in seen:
        maps = network.run(picture.pixels, "attention")[0].numpy()  # (A, L, L)
        if not len(maps):
            raise ValueError(f"{network.file}: {network.arch} has no attention")
        rows = math.isqrt(maps.shape[1])
        if config.pooled:
            weights.append(maps.mean(axis=1))
            asking.append(None)
            continue
        row, column = query_cell(config, picture, network.spec.crop, rows)
        weights.append(maps[:, row * rows + column])
        asking.append(((column + 0.5) / rows, (row + 0.5) / rows))
    return draw_attention(seen, weights, asking, config.heads)


def query_cell(config: AttentionConfig, seen: Seen, side: int, rows: int) -> tuple[int, int]:
    """Give row and column of the region that asks.

    Raises:
        ValueError: if the point lies outside what the model sees.
    """
    if config.query is None:
        return rows // 2, rows // 2
    x, y = seen.geometry.to_model(np.array(config.query)) * rows / side
    if not (0 <= x < rows and 0 <= y < rows):
        size = f"{seen.geometry.width}x{seen.geometry.height}"
        raise ValueError(f"point {config.query} lies outside what is seen of the {size} picture")
    return int(y), int(x)


def correspondence(config: CorrespondenceConfig, network: Frozen, seen: list[Seen]) -> Image.Image:
    """Draw lines between two images, or between one and its copy, whose right places are known."""
    pixels = [picture.pixels for picture in seen]
    shown = [picture.shown for picture in seen]
    is_copy = len(seen) == 1
    if is_copy:
        pixels.append(mirrored_copies(pixels[0], [config.seed]))
        large = torch.from_numpy(np.array(shown[0])).permute(2, 0, 1)[None]
        copy = mirrored_copies(large, [config.seed])[0].permute(1, 2, 0)
        shown.append(Image.fromarray(copy.numpy()))
    source, target = (network.run(some, "regions") for some in pixels)
    lines = choose_lines(source, target, top_k=config.top_k, mutual_only=config.mutual_only)
    L = source.shape[1]
    count = len(lines.scores)
    kind = "mutual pairs" if config.mutual_only else "pairs"
    note = f"{count} {kind}"
    if is_copy:
        note = f"{count_mirrored(lines, math.isqrt(L))} of {count} {kind} right"
    return draw_lines((shown[0], shown[1]), lines, L, note)


def write(path: Path, image: Image.Image) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as temporary:
        image.save(temporary, "PNG")


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    config: Config = read_arguments(
        lambda: tyro.cli(Config, args=argv, prog="python -m trainer.visualize")
    )
    try:
        write(config.out, draw(config))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{config.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
