"""What a run trains: networks, loss and optimizer, from a config, from other weights, to weights.

Student and teacher begin equal. Which backbone they hold is decided by the config's name alone.
"""

import logging
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esvit.backbones import BackboneConfig, Swin, build
from esvit.backbones.swin_start import start_local
from esvit.config import HeadConfig
from esvit.fused_loss import FusedLoss
from esvit.head import ProjectionHead
from esvit.loss import Loss
from esvit.model import HEADS, EsViT
from esvit.teacher import start_teacher
from esvit.weights import Weights, read_centers, read_weights
from trainer import distributed
from trainer.checkpoint import load_latest
from trainer.config import LossConfig, PretrainConfig
from trainer.optim import make_optimizer
from trainer.run_state import (
    load_known,
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
)
from trainer.step import TrainState

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Where a run's folder has them."""


def build_state(config: PretrainConfig, device: torch.device) -> TrainState:
    """Make fresh networks, drawn from the run's seed, and what belongs to them.

    The teacher is in training mode too, as published: batch norms of it use the statistics of the
    batch and keep running ones of their own.
    """
    torch.manual_seed(config.seed)
    backbone, head = config.backbone, config.model.head
    drop_path = config.model.drop_path
    student_backbone = backbone if drop_path is None else replace(backbone, drop_path=drop_path)
    has_regions = config.loss.region_weight > 0
    student = _network(student_backbone, head, has_regions=has_regions)
    if config.model.start == "local":
        assert isinstance(student.backbone, Swin)  # the config saw to it
        start_local(student.backbone)
    teacher = _network(replace(backbone, drop_path=0.0), head, has_regions=has_regions)
    start_teacher(teacher, student)
    student, teacher = (_sharing_statistics(network.to(device)) for network in (student, teacher))
    return TrainState(
        student=student,
        teacher=teacher,
        optimizer=make_optimizer(student, decay_tables=config.optim.decay_tables),
        loss=_loss(config.loss, head.num_prototypes).to(device),
    )


def speed_up(state: TrainState, *, recompute: bool, compiled: bool, sides: Collection[int]) -> None:
    """Let blocks be recomputed in backward passes, and both networks be compiled, if asked for.

    Args:
        state: Holds the networks.
        recompute: Whether blocks keep only their inputs.
        compiled: Whether the networks go through torch.compile.
        sides: Of the views, in pixels.
    """
    networks = [state.student, state.teacher]
    if recompute:
        for network in networks:
            assert isinstance(network, EsViT)
            network.backbone.recompute = True
    if compiled:
        for side in sides:  # a compiled network makes what it finds in no memory at every call
            _remember_layouts(state.teacher, side)
        for network in networks:
            network.compile()


@torch.no_grad()
def _remember_layouts(network: nn.Module, side: int) -> None:
    """Have a network in evaluation mode lay its windows out and remember them."""
    device = next(network.parameters()).device
    network([torch.zeros(1, 3, side, side, device=device)])


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """Name all tensors that a checkpoint holds."""
    return {
        **module_tensors("student", state.student),
        **module_tensors("teacher", state.teacher),
        **module_tensors("loss", state.loss),
        **optimizer_tensors(state.optimizer, state.student.named_parameters()),
    }


def load_state(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` named.

    Raises:
        ValueError: if the tensors are not those of this state.
    """
    load_module("student", state.student, tensors)
    load_module("teacher", state.teacher, tensors)
    load_module("loss", state.loss, tensors)
    load_optimizer(state.optimizer, state.student.named_parameters(), tensors)


def start_from(state: TrainState, path: Path) -> list[str]:
    """Load the weights and centers of another run; the optimizer stays fresh.

    Both networks keep equal fresh heads where the other run has none, and fresh centers.

    Args:
        state: Fresh.
        path: A published checkpoint, weights of ours, or a run's folder.

    Returns:
        Names of the student's tensors that are fresh.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if the weights are of another backbone, or have a head that the run has not.
    """
    tensors = _tensors_of(path)
    try:
        fresh = load_known("student", state.student, tensors)
        load_known("teacher", state.teacher, tensors)
        load_known("loss", state.loss, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    missing = [name for name in fresh if not name.startswith(HEADS)]
    if missing:
        raise ValueError(f"{path} is of another backbone: it has no {missing[0]}")
    return fresh


def teacher_weights(config: PretrainConfig, state: TrainState, about: Mapping[str, Any]) -> Weights:
    """Give the teacher as weights for export; about is what a reader should know of the run."""
    head = config.model.head
    return Weights(
        state=dict(state.teacher.state_dict()),
        backbone=config.backbone,
        head=head,
        head_dense=head if config.loss.region_weight > 0 else None,
        about={**about, "licence": config.licence},
    )


def source_revision() -> str:
    """Name the revision of this code, if it is under git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


def _network(backbone: BackboneConfig, head: HeadConfig, *, has_regions: bool) -> EsViT:
    """Make a backbone with its heads."""
    built = build(backbone)
    view_head = ProjectionHead(built.dim, head)
    return EsViT(built, view_head, ProjectionHead(built.dim, head) if has_regions else None)


def _sharing_statistics(network: EsViT) -> EsViT:
    """Let batch norms see the images of all processes, as published; torch does so on CUDA only."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms or distributed.world_size() == 1:
        return network
    if next(network.parameters()).device.type != "cuda":
        logger.warning("batch norms see the images of one process each: shared on CUDA only")
        return network
    shared: EsViT = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return shared


def _loss(config: LossConfig, num_prototypes: int) -> Loss:
    """Make the loss."""
    kind = FusedLoss if config.fused else Loss
    return kind(
        num_prototypes,
        view_weight=config.view_weight,
        region_weight=config.region_weight,
        student_temperature=config.student_temperature,
        center_momentum=config.center_momentum,
        centering=config.centering,
    )


def _tensors_of(path: Path) -> dict[str, Tensor]:
    """Read the networks and centers of another run, named as in a checkpoint of ours."""
    if path.is_dir():
        found = load_latest(path / CHECKPOINTS)
        if found is None:
            raise FileNotFoundError(f"{path} holds no checkpoint")
        return found.tensors
    student = read_weights(path, "student").state
    teacher = read_weights(path, "teacher").state
    return {
        **{f"student/{name}": tensor for name, tensor in student.items()},
        **{f"teacher/{name}": tensor for name, tensor in teacher.items()},
        **{f"loss/{name}": tensor for name, tensor in read_centers(path).items()},
    }
