"""What an evaluation is asked for, as typed data; the command line is made from these classes."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from esvit.weights import Network
from service.preprocess import Fit
from trainer.evaluation.knn import TEMPERATURE


def default_cache() -> Path:
    """Give the folder where the user's system keeps what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "esvit" / "features"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which network is measured, and where it runs.

    Attributes:
        checkpoint: A published checkpoint, weights of ours (.safetensors), a run's folder or one
            of its checkpoints.
        model: A model file of `trainer.export_onnx`, instead of a checkpoint.
        which: The network of a checkpoint that holds both.
        image_size: Side in pixels of the square that a checkpoint sees: 32 to 1024; if not given,
            that of a run's global views, else 224. A model file has its own.
        device: Where to run; `auto` takes a CUDA device if there is one.
        precision: Of a checkpoint's matrix products; a model file has its own.
    """

    checkpoint: Path | None = None
    model: Path | None = None
    which: Network = "teacher"
    image_size: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(NetworkConfig):
    """Which images it is measured on, and how they come to it.

    Attributes:
        data: A folder, or .zip, .tar or .parquet files (`shards/*.tar`, `s-{000..146}.tar`).
        fit: What of a picture is seen: its centre as published, or the whole of it.
        max_images: Use at most so many images of each part of the data, drawn by the seed.
        seed: Of everything that is drawn.
        batch: Images at a time.
        num_workers: Processes that load images; 0 loads them in this one.
        cache: Folder where features are kept for the next time.
        use_cache: Whether they are kept.
    """

    data: str
    fit: Fit = "crop"
    max_images: int | None = None
    seed: int = 0
    batch: int = 32
    num_workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    cache: Path = field(default_factory=default_cache)
    use_cache: bool = True


@dataclass(frozen=True, kw_only=True)
class KnnConfig(ImagesConfig):
    """Classify images by the most similar labelled ones.

    Data: a folder with `train` and `val` (or `test`) in it, each with a folder for each class.

    Attributes:
        test: The images to classify; `--data` is then the labelled ones alone.
        labels: Column that has the classes: `class` is the top-level folder, others are those of
            `manifest.csv`, found by its column `path`.
        k: Numbers of neighbours that vote.
        temperature: Divides the cosines in the votes' exponent.
    """

    test: str | None = None
    labels: str = "class"
    k: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = TEMPERATURE


@dataclass(frozen=True, kw_only=True)
class LinearConfig(ImagesConfig):
    """Train a linear classifier on the last four blocks of the frozen network.

    Data: as for k-NN. Features are of centre crops, worked out once.

    Attributes:
        test: The images to classify; `--data` is then the training images alone.
        labels: As for k-NN.
        multi_label: Whether an image has any number of classes, separated by semicolons in the
            column of `labels`.
        method: The published SGD; L-BFGS with a search for the L2 penalty; or both.
        base_lr: Learning rates of SGD for a batch of 256; each has a classifier of its own.
        epochs: Of SGD.
        sgd_batch: Images of an update.
        validation: Share of the training images that the search is judged by.
    """

    test: str | None = None
    labels: str = "class"
    multi_label: bool = False
    method: Literal["both", "sgd", "lbfgs"] = "both"
    base_lr: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    epochs: int = 100
    sgd_batch: int = 1024
    validation: float = 0.2


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(ImagesConfig):
    """Find the same thing among other pictures: recall at k, and mean average precision.

    Conditions are `column=value` or `column!=value`, several values separated by commas; all must
    hold. Columns are those of `manifest.csv` in the data's folder, found by its column `path`, and
    of every image `class` (its top-level folder), `stem` (its file's name up to `__`) and `tail`
    (what follows that).

    Attributes:
        queries: Images to find others of, if they lie elsewhere than `--data`. Without it and
            without `--across`, each image is looked for among all the others.
        identity: Column that says what a picture is of; images where it is empty are left out.
        across: Column by which the images are parted: each part is looked for in each other, and
            the mean over these pairs is given; images where it is empty are left out.
        where: Conditions on all images.
        ask: Conditions on the queries.
        k: How many of the nearest may hold a right one.
    """

    queries: str | None = None
    identity: str = "class"
    across: str | None = None
    where: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    k: tuple[int, ...] = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class CorrespondenceConfig(ImagesConfig):
    """Find the regions of an image again in another view of it. Needs no labels.

    Attributes:
        geometry: The published measure's mirrored, grey copy; or two crops of any place, size and
            flip, the second with the copy's colours.
    """

    geometry: Literal["mirror", "free"] = "mirror"


@dataclass(frozen=True, kw_only=True)
class ThroughputConfig:
    """Time backbones: images a second, parameters, multiply-adds, peak memory.

    Attributes:
        arch: Names of backbones.
        all: All of the paper's table, with its numbers and ratios beside.
        checkpoint: The backbone of a checkpoint, as in the other measures.
        model: A model file in ONNX Runtime.
        which: The network of a checkpoint that holds both.
        image_size: Side in pixels of the square that a backbone sees: 32 to 1024; if not given, of
            a run that of its global views, else 224.
        device: Where to run; `auto` takes a CUDA device if there is one.
        precisions: Of a backbone's matrix products.
        batches: Images of a pass.
        repeats: Passes that the median is taken of.
        compiled: Whether backbones go through torch.compile.
    """

    arch: tuple[str, ...] = ()
    all: tyro.conf.FlagCreatePairsOff[bool] = False
    checkpoint: Path | None = None
    model: Path | None = None
    which: Network = "teacher"
    image_size: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    batches: tuple[int, ...] = (1, 8, 32)
    repeats: int = 5
    compiled: tyro.conf.FlagCreatePairsOff[bool] = False
