"""A network of a few hundred numbers, its views, and steps of it."""

import torch

from esvit.backbones import SwinConfig, build
from esvit.config import HeadConfig
from esvit.fused_loss import FusedLoss
from esvit.head import ProjectionHead
from esvit.model import EsViT
from esvit.teacher import start_teacher
from trainer.optim import make_optimizer
from trainer.schedule import ScheduleConfig
from trainer.step import StepConfig, TrainState, train_step

TINY_BACKBONE = SwinConfig(
    dim=8, depths=(1, 1), num_heads=(1, 2), window=4, image_size=32, drop_path=0.0
)
TINY_HEAD = HeadConfig(num_prototypes=24, hidden_dim=12, bottleneck_dim=6, norm_last_layer=False)
SCHEDULE = ScheduleConfig(epochs=4, steps_per_epoch=2, warmup_epochs=0, warmup_teacher_epochs=0)


def tiny_network():
    return EsViT(build(TINY_BACKBONE), ProjectionHead(16, TINY_HEAD), ProjectionHead(16, TINY_HEAD))


def tiny_state(loss_class=FusedLoss):
    torch.manual_seed(0)
    student, teacher = tiny_network(), tiny_network()
    start_teacher(teacher, student)
    return TrainState(
        student=student,
        teacher=teacher,
        optimizer=make_optimizer(student),
        loss=loss_class(TINY_HEAD.num_prototypes),
    )


def tiny_views(images=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(images, 3, side, side, generator=generator) for side in (32, 32, 16, 16, 8)]


def step(state, parts, **options):
    return train_step(state, parts, schedule_config=SCHEDULE, config=StepConfig(**options))


def snapshot(state):
    tensors = [*state.student.state_dict().values(), *state.teacher.state_dict().values()]
    return [tensor.clone() for tensor in (*tensors, *state.loss.state_dict().values())]
