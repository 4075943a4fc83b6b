"""The losses once more, slow and written out: loops over images and regions, nothing from esvit."""

import torch
from torch import Tensor


def cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """-sum over prototypes of p log q, for two (K,) vectors of ready-scaled logits."""
    teacher, student = teacher.double(), student.double()
    p = teacher.exp() / teacher.exp().sum()
    q = student.exp() / student.exp().sum()
    return -sum(p[k] * q[k].log() for k in range(len(p))).float()


def best_match(region: Tensor, candidates: Tensor) -> int:
    """Index of the row of candidates (T, C) with the largest cosine to region (C,)."""
    cosines = [region @ row / (region.norm() * row.norm()) for row in candidates]
    return max(range(len(cosines)), key=lambda index: cosines[index])


def region_loss(student: Tensor, teacher: Tensor, student_features, teacher_features) -> Tensor:
    """One pair of views: logits (B, S, K) and (B, T, K), features (B, S, C) and (B, T, C)."""
    B, S, _ = student.shape
    total = torch.zeros(())
    for image in range(B):
        for region in range(S):
            match = best_match(student_features[image, region], teacher_features[image])
            total = total + cross_entropy(student[image, region], teacher[image, match]) / (B * S)
    return total


def all_pairs(student, teacher, student_features, teacher_features) -> Tensor:
    """Mean of `region_loss` over pairs of different views; every argument a list over views."""
    losses = [
        region_loss(student[s], teacher[t], student_features[s], teacher_features[t])
        for t in range(len(teacher))
        for s in range(len(student))
        if s != t
    ]
    return sum(losses) / len(losses)
