import pytest
import torch

from benchmarks import published
from esvit.backbones import build
from esvit.config import HeadConfig
from esvit.head import ProjectionHead
from esvit.loss import Loss
from esvit.model import EsViT
from esvit.teacher import start_teacher
from tests.conftest import TINY

HEAD = HeadConfig(num_prototypes=24, hidden_dim=16, bottleneck_dim=8, norm_last_layer=False)


@pytest.fixture
def networks():
    torch.manual_seed(0)
    networks = []
    for _ in range(2):
        backbone = build(TINY)
        heads = (ProjectionHead(backbone.dim, HEAD) for _ in range(2))
        networks.append(EsViT(backbone, *heads))
    student, teacher = networks
    for parameter in student.parameters():  # published starts are too small to tell errors
        torch.nn.init.normal_(parameter, std=0.3)
    start_teacher(teacher, student)
    return student, teacher


def views():
    torch.manual_seed(1)
    return [torch.randn(2, 3, side, side) for side in (224, 224, 96, 96, 96)]


def gradients(network):
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def test_the_published_form_has_our_loss_and_gradients(networks):
    student, teacher = networks
    loss = Loss(HEAD.num_prototypes)
    ours = loss(student(views()), teacher(views()[:2]), published.TEACHER_TEMPERATURE).total
    ours.backward()
    expected = gradients(student)
    student.zero_grad()

    theirs = published.both_tasks(
        published.logits(student, views()),
        published.logits(teacher, views()[:2]),
        published.Centers(HEAD.num_prototypes),
    )
    theirs.backward()

    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in gradients(student).items():
        assert (gradient - expected[name]).abs().max() <= 1e-4 * largest, name


def test_the_published_step_moves_student_teacher_and_centers(networks):
    student, teacher = networks
    before = [p.detach().clone() for p in (*student.parameters(), *teacher.parameters())]
    centers = published.Centers(HEAD.num_prototypes)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01)

    published.step(student, teacher, centers, optimizer, views())

    after = [*student.parameters(), *teacher.parameters()]
    assert all((new != old).any() for new, old in zip(after, before, strict=True))
    assert centers.view.abs().max() > 0
    assert centers.regions.abs().max() > 0
