"""A pretraining run as typed data: every number of it, with its unit and its range.

The defaults are those of the published Swin-T run; `recipes.py` has the other runs. The command
line is made from these classes, so their docstrings are its help.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from esvit.backbones import BackboneConfig, SwinConfig
from esvit.config import HeadConfig, backbone_config
from esvit.loss import Centering
from trainer.augment import ViewSpec, global_views, local_views
from trainer.data.loader import LoaderConfig
from trainer.expect import expect
from trainer.schedule import SchedulePlan

LARGEST = 2048
"""Side of a view in pixels at most: attention grows with the fourth power of it."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images are seen.

    Attributes:
        path: A folder, or .zip, .tar or .parquet files (`shards/*.tar`, `s-{000..146}.tar`), or
            tar shards to be streamed (`pipe:COMMAND`, `https://...`, .tar.gz). Labels are not
            needed; the top-level folder counts as one where online k-NN asks for it.
        images_per_epoch: What a stream calls an epoch; other sources know how many they have.
        mix: Images that a worker holds to mix a stream.
        min_side: Shorter side in pixels below which an image is no picture.
        max_bad_share: Share of unreadable images, 0 to 1, above which the run stops.
    """

    path: str
    images_per_epoch: int | None = None
    mix: int = 1000
    min_side: int = 8
    max_bad_share: float = 0.1

    def __post_init__(self) -> None:
        counted = self.images_per_epoch is None or self.images_per_epoch >= 1
        expect(counted, "1 or more", images_per_epoch=self.images_per_epoch)
        expect(self.mix >= 1, "1 or more", mix=self.mix)
        expect(self.min_side >= 1, "1 or more", min_side=self.min_side)
        expect(0 <= self.max_bad_share <= 1, "0 to 1", max_bad_share=self.max_bad_share)


@dataclass(frozen=True, kw_only=True)
class CropsConfig:
    """Which views are made of an image; the teacher sees the global ones.

    Attributes:
        global_size: Side in pixels.
        global_scale: Smallest and largest share of the image's area.
        num_global: How many, at least 2 if there are no local ones.
        local_sizes: Sides in pixels of the local views, any number of sizes.
        local_scale: As `global_scale`.
        num_local: How many of each local size; 0 for none.
        blur_radius: Smallest and largest standard deviation of the blur in pixels, of any view.
            The published range suits views of 224; small ones lose their lines in it.
        grey: Probability that a view loses its colour.
    """

    global_size: int = 224
    global_scale: tuple[float, float] = (0.4, 1.0)
    num_global: int = 2
    local_sizes: tuple[int, ...] = (96,)
    local_scale: tuple[float, float] = (0.05, 0.4)
    num_local: int = 8
    blur_radius: tuple[float, float] = (0.1, 2.0)
    grey: float = 0.2

    def __post_init__(self) -> None:
        expect(self.num_global >= 1, "1 or more", num_global=self.num_global)
        expect(self.num_local >= 0, "0 or more", num_local=self.num_local)
        expect(self.global_size <= LARGEST, f"at most {LARGEST} px", global_size=self.global_size)
        if len(self.specs) < 2:
            raise ValueError("a single view makes no pair; expected 2 views or more")
        if max(view.size for view in self.specs) > self.global_size:
            raise ValueError(
                f"local_sizes are {self.local_sizes}, expected at most global_size "
                f"({self.global_size})"
            )

    @property
    def specs(self) -> tuple[ViewSpec, ...]:
        """How each view is made, the global ones first."""
        views = global_views(self.global_size, count=self.num_global, scale=self.global_scale)
        for size in self.local_sizes:
            views += local_views(size, count=self.num_local, scale=self.local_scale)
        return tuple(replace(view, blur_radius=self.blur_radius, grey=self.grey) for view in views)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks.

    Attributes:
        arch: Name of a backbone.
        drop_path: Stochastic depth of the student's last block, in [0, 1); the backbone's own if
            not given. The teacher has none.
        start: How weights are drawn; `local` lets a Swin's heads begin at neighbouring regions,
            which small networks on little data profit from.
        head: Of both tasks.
    """

    arch: str = "swin_tiny_w7"
    drop_path: float | None = None
    start: Literal["published", "local"] = "published"
    head: HeadConfig = field(default_factory=lambda: HeadConfig(norm_last_layer=False))

    def __post_init__(self) -> None:
        backbone = backbone_config(self.arch)
        if self.start == "local" and not isinstance(backbone, SwinConfig):
            raise ValueError(f"start is local, which is for Swin; {self.arch} is none")
        if self.drop_path is not None:
            replace(backbone, drop_path=self.drop_path)  # it says what is wrong with it


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The two tasks.

    Attributes:
        view_weight: Of the view task; the published code has 0.5 and 0.5, the paper 1 and 1, and
            the view task alone 1 and 0.
        region_weight: Of the region task; with 0 there is no region head.
        student_temperature: Divides the student's logits.
        center_momentum: Share of the old center that an update keeps, in [0, 1).
        centering: The published running mean; or a center solved for each batch (Sinkhorn-Knopp)
            that gives all prototypes an equal share, with which small runs learn from the start.
        fused: Whether logits are never stored; the same numbers in a fraction of the memory.
    """

    view_weight: float = 0.5
    region_weight: float = 0.5
    student_temperature: float = 0.1
    center_momentum: float = 0.9
    centering: Centering = "mean"
    fused: bool = True

    def __post_init__(self) -> None:
        weights = (self.view_weight, self.region_weight)
        if min(weights) < 0 or sum(weights) == 0:
            raise ValueError(f"loss weights are {weights}, expected a positive one")
        temperature, momentum = self.student_temperature, self.center_momentum
        expect(temperature > 0, "over 0", student_temperature=temperature)
        expect(0 <= momentum < 1, "0 or more and less than 1", center_momentum=momentum)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """One optimizer update.

    Attributes:
        batch: Images of an update, over all processes and passes.
        base_lr: Peak learning rate of a batch of 256; it grows with the batch (linear rule).
        clip: Whether each gradient is clipped alone, as published, or all by one factor.
        clip_norm: The norm it is clipped to.
        freeze_epochs: First epochs in which the prototypes stay as they are drawn.
        decay_tables: Whether weight decay reaches position tables and the prototypes' lengths, as
            published.
        max_skipped: So many updates in a row without finite gradients stop the run.
    """

    batch: int = 512
    base_lr: float = 5e-4
    clip: Literal["each", "all"] = "each"
    clip_norm: float = 3.0
    freeze_epochs: int = 1
    decay_tables: bool = True
    max_skipped: int = 10

    def __post_init__(self) -> None:
        expect(self.batch >= 1, "1 or more", batch=self.batch)
        expect(0 < self.base_lr < math.inf, "a number over 0", base_lr=self.base_lr)
        expect(self.clip_norm > 0, "over 0", clip_norm=self.clip_norm)
        expect(self.freeze_epochs >= 0, "0 or more", freeze_epochs=self.freeze_epochs)
        expect(self.max_skipped >= 1, "1 or more", max_skipped=self.max_skipped)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where and how the arithmetic is done.

    What is learnt is the same up to rounding and chance, but for `images_per_pass`, where something
    is worked out for each pass: centers with `sinkhorn`, and the statistics of batch norms.

    Attributes:
        device: `auto` takes a CUDA device if there is one.
        precision: Of matrix products; `auto` takes bf16 where the device multiplies it faster.
            Weights, losses and centers are float32 always.
        images_per_pass: Most images of one forward pass of a process; gradients of several passes
            add up to one update.
        recompute: Whether blocks are computed again in the backward pass instead of being kept:
            less memory, more time.
        compile: Whether the networks go through torch.compile.
        alter_on_device: Whether jitter, grey, blur and solarize run batched on the device instead
            of in the loader's workers.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    images_per_pass: int = 32
    recompute: bool = False
    compile: bool = False
    alter_on_device: bool = False

    def __post_init__(self) -> None:
        expect(self.images_per_pass >= 1, "1 or more", images_per_pass=self.images_per_pass)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved.

    Attributes:
        every_minutes: Between checkpoints; one is written at every epoch's end besides.
        keep_last: How many of the newest stay.
        keep_every: Each so many epochs the checkpoint stays for good, and the teacher is written
            as weights for export; 0 for never. The last one is always kept.
    """

    every_minutes: float = 15.0
    keep_last: int = 3
    keep_every: int = 25

    def __post_init__(self) -> None:
        expect(self.every_minutes > 0, "over 0", every_minutes=self.every_minutes)
        expect(self.keep_last >= 2, "2 or more: one to fall back on", keep_last=self.keep_last)
        expect(self.keep_every >= 0, "0 or more", keep_every=self.keep_every)


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """What is told of a run.

    Attributes:
        every: Steps between lines of metrics.
        evaluate_every: Epochs between measures of the teacher (correspondence, k-NN); 0 for never.
        evaluate_path: Images for that, kept out of training; if not given, training images. k-NN
            needs labels, both there and in training.
        evaluate_images: How many are measured; k-NN looks among four times as many others.
        tensorboard: Whether the metrics are written for TensorBoard too.
    """

    every: int = 50
    evaluate_every: int = 5
    evaluate_path: str | None = None
    evaluate_images: int = 1000
    tensorboard: bool = False

    def __post_init__(self) -> None:
        expect(self.every >= 1, "1 or more", every=self.every)
        expect(self.evaluate_every >= 0, "0 or more", evaluate_every=self.evaluate_every)
        expect(self.evaluate_images >= 1, "1 or more", evaluate_images=self.evaluate_images)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain on a folder of images.

    Attributes:
        out: Folder of the run, made if missing. If it holds a checkpoint the run goes on there.
        init: Weights to begin with: a published checkpoint, weights of ours (.safetensors), or the
            folder of another run. Heads that they lack begin fresh.
        init_epoch: Epoch of the schedule at which a run with `init` begins.
        recipe: What the run is called in the weights it writes.
        licence: Of these weights, an SPDX expression where there is one.
        seed: Of everything random.
        seed_per_rank: Whether processes drop different blocks (stochastic depth); off as published.
    """

    data: DataConfig
    out: Path
    init: Path | None = None
    init_epoch: int = 0
    recipe: str = "own"
    licence: str = "NOASSERTION"
    seed: int = 0
    seed_per_rank: bool = False
    crops: CropsConfig = field(default_factory=CropsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: SchedulePlan = field(default_factory=SchedulePlan)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        expect(self.seed >= 0, "0 or more", seed=self.seed)
        last = self.schedule.epochs - 1
        expect(0 <= self.init_epoch <= last, f"0 to {last}", init_epoch=self.init_epoch)
        smallest = self.backbone.least_side
        sizes = tuple(sorted({view.size for view in self.crops.specs}))
        if min(sizes) < smallest:
            raise ValueError(f"views are {sizes} px, expected at least {smallest} px")

    @property
    def backbone(self) -> BackboneConfig:
        """The teacher's backbone is this one without stochastic depth."""
        return backbone_config(self.model.arch)


MAY_CHANGE = (
    "out", "recipe", "licence", "data.path", "compute", "loader", "checkpoint", "monitor",
)  # fmt: skip
"""What a resumed run may have other than it began with; the rest says what is learnt, and how."""
