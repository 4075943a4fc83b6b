"""Named runs: the published ones, and two of ours for small machines.

The published runs of the model zoo of the EsViT repository: 300 epochs, batch 512 or 1024, both
tasks from the start in Swin-T and Swin-S of window 7; DeiT-S has the view task only. In the others
the region task was added to a run of the view task alone (`--loss.view-weight 1
--loss.region-weight 0`) with `--init` at the epoch that the recipe names; without `--init` both
tasks begin together.
"""

from collections.abc import Callable
from pathlib import Path

from esvit.config import HeadConfig
from trainer.config import (
    CheckpointConfig,
    ComputeConfig,
    CropsConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    PretrainConfig,
)
from trainer.data.loader import LoaderConfig
from trainer.schedule import SchedulePlan

Recipe = Callable[[str, Path], PretrainConfig]
"""Takes the data's path and the run's folder."""


def swin_tiny_w7(data: str, out: Path) -> PretrainConfig:
    """Swin-T, window 7: 16 GPUs x 32; k-NN 75.7, linear 78.1."""
    return PretrainConfig(data=DataConfig(path=data), out=out, recipe="swin-tiny-w7")


def swin_tiny_w14(data: str, out: Path) -> PretrainConfig:
    """Swin-T, window 14: 16 GPUs x 32, region task from epoch 200; k-NN 77.0, linear 78.7."""
    return _published(data, out, arch="swin_tiny_w14", init_epoch=200)


def swin_small_w7(data: str, out: Path) -> PretrainConfig:
    """Swin-S, window 7: 16 GPUs x 32; k-NN 77.7, linear 79.5."""
    return _published(data, out, arch="swin_small_w7")


def swin_small_w14(data: str, out: Path) -> PretrainConfig:
    """Swin-S, window 14: 32 GPUs x 16, region task from epoch 180; k-NN 79.1, linear 80.8."""
    return _published(data, out, arch="swin_small_w14", images_per_pass=16, init_epoch=180)


def swin_base_w7(data: str, out: Path) -> PretrainConfig:
    """Swin-B, window 7: 16 GPUs x 32, region task from epoch 200; k-NN 78.9, linear 80.4."""
    return _published(data, out, arch="swin_base_w7", init_epoch=200)


def swin_base_w14(data: str, out: Path) -> PretrainConfig:
    """Swin-B, window 14: 64 GPUs x 8, region task from epoch 200; k-NN 79.3, linear 81.3."""
    return PretrainConfig(
        data=DataConfig(path=data),
        out=out,
        recipe="swin-base-w14",
        init_epoch=200,
        model=ModelConfig(arch="swin_base_w14", head=HeadConfig(norm_last_layer=True)),
        compute=ComputeConfig(images_per_pass=8),
    )


def deit_small_p16(data: str, out: Path) -> PretrainConfig:
    """DeiT-S, the view task alone: batch 1024; k-NN 73.2, linear 75.9."""
    return PretrainConfig(
        data=DataConfig(path=data),
        out=out,
        recipe="deit-small-p16",
        model=ModelConfig(arch="deit_small_p16"),
        loss=LossConfig(view_weight=1.0, region_weight=0.0),
        optim=OptimConfig(batch=1024),
        compute=ComputeConfig(images_per_pass=64),
    )


def cvt_tiny(data: str, out: Path) -> PretrainConfig:
    """CvT: 16 GPUs x 64, region task from epoch 200; k-NN 76.7, linear 78.5."""
    return PretrainConfig(
        data=DataConfig(path=data),
        out=out,
        recipe="cvt-tiny",
        init_epoch=200,
        model=ModelConfig(arch="cvt_tiny"),
        optim=OptimConfig(batch=1024),
        compute=ComputeConfig(images_per_pass=64),
    )


def vil_2262(data: str, out: Path) -> PretrainConfig:
    """ViL: 16 GPUs x 32, region task from epoch 200; k-NN 74.5, linear 77.5."""
    return _published(data, out, arch="vil_2262", init_epoch=200)


def resnet50(data: str, out: Path) -> PretrainConfig:
    """ResNet-50: 16 GPUs x 64, region task from epoch 200; k-NN 71.3, linear 75.7."""
    return PretrainConfig(
        data=DataConfig(path=data),
        out=out,
        recipe="resnet50",
        init_epoch=200,
        model=ModelConfig(arch="resnet50"),
        optim=OptimConfig(batch=1024),
        compute=ComputeConfig(images_per_pass=64),
    )


def nano(data: str, out: Path) -> PretrainConfig:
    """A small Swin for pictures of 64 px, on two cores: the model that ships.

    Icons lose their meaning in small crops and in blur, so views keep more of the picture than
    published. A local start, solved centers and a sharper teacher let a run of hours learn from its
    first epoch.
    """
    return PretrainConfig(
        data=DataConfig(path=data),
        out=out,
        recipe="nano",
        crops=CropsConfig(
            global_size=64,
            global_scale=(0.45, 1.0),
            local_sizes=(32,),
            local_scale=(0.12, 0.45),
            num_local=4,
            blur_radius=(0.1, 0.8),
            grey=0.5,
        ),
        model=ModelConfig(
            arch="swin_nano_w8",
            start="local",
            head=HeadConfig(num_prototypes=2048, hidden_dim=512, norm_last_layer=False),
        ),
        loss=LossConfig(centering="sinkhorn"),
        optim=OptimConfig(batch=64, base_lr=4e-3),
        schedule=SchedulePlan(
            epochs=36,
            warmup_epochs=1,
            final_weight_decay=0.1,
            momentum=0.99,
            teacher_temperature=0.02,
            warmup_teacher_temperature=0.02,
            warmup_teacher_epochs=0,
        ),
        compute=ComputeConfig(images_per_pass=64),
        loader=LoaderConfig(num_workers=1),
        checkpoint=CheckpointConfig(every_minutes=5),
    )


def smoke(data: str, out: Path) -> PretrainConfig:
    """A few steps in seconds, to see that everything works; it learns nothing."""
    return PretrainConfig(
        data=DataConfig(path=data),
        out=out,
        recipe="smoke",
        crops=CropsConfig(global_size=64, local_sizes=(32,), num_local=2),
        model=ModelConfig(
            arch="swin_nano_w8",
            head=HeadConfig(
                num_prototypes=64, hidden_dim=32, bottleneck_dim=16, norm_last_layer=False
            ),
        ),
        optim=OptimConfig(batch=4),
        schedule=SchedulePlan(epochs=2, warmup_epochs=1, warmup_teacher_epochs=1),
        compute=ComputeConfig(device="cpu", precision="fp32"),
        loader=LoaderConfig(num_workers=0),
        checkpoint=CheckpointConfig(keep_every=0),
        monitor=MonitorConfig(every=1, evaluate_every=1, evaluate_images=8),
    )


def _published(
    data: str, out: Path, *, arch: str, images_per_pass: int = 32, init_epoch: int = 0
) -> PretrainConfig:
    """Give the published Swin-T run with another backbone."""
    return PretrainConfig(
        data=DataConfig(path=data),
        out=out,
        recipe=arch.replace("_", "-"),
        init_epoch=init_epoch,
        model=ModelConfig(arch=arch),
        compute=ComputeConfig(images_per_pass=images_per_pass),
    )


RECIPES: dict[str, Recipe] = {
    "swin-tiny-w7": swin_tiny_w7,
    "swin-tiny-w14": swin_tiny_w14,
    "swin-small-w7": swin_small_w7,
    "swin-small-w14": swin_small_w14,
    "swin-base-w7": swin_base_w7,
    "swin-base-w14": swin_base_w14,
    "deit-small-p16": deit_small_p16,
    "cvt-tiny": cvt_tiny,
    "vil-2262": vil_2262,
    "resnet50": resnet50,
    "nano": nano,
    "smoke": smoke,
}
"""By the name that the command line has for them."""
