import torch
from torch import nn

from esvit.teacher import start_teacher, update_teacher


def network():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_average_by_hand():
    teacher, student = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        teacher.weight.fill_(1.0)
        student.weight.fill_(3.0)
    update_teacher(teacher, student, 0.75)
    assert teacher.weight.item() == 1.5
    assert student.weight.item() == 3.0


def test_frozen_parameters_are_averaged_and_buffers_are_not():
    torch.manual_seed(0)
    student, teacher = network(), network()
    start_teacher(teacher, student)
    student[0].weight.requires_grad_(False).add_(1)
    student[1].running_mean.add_(1)
    before = teacher[0].weight.clone()
    update_teacher(teacher, student, 0.9)
    torch.testing.assert_close(teacher[0].weight, before + 0.1)
    assert not teacher[1].running_mean.any()


def test_teacher_starts_as_the_student_and_gets_no_gradient():
    student, teacher = network(), network()
    start_teacher(teacher, student)
    for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad
        assert theirs.requires_grad
