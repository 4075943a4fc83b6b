"""A training step of Swin as the published code does it, to be measured against.

The networks are ours, for they hold the published parameters; what is done with them here is what
microsoft/esvit does, operation by operation where one costs time or memory: windows are padded,
rolled and copied, their mask is made at every pass, attention and all logits are written out, each
pair of views has a log-softmax of its own, and clipping, AdamW and the average go tensor by tensor.

Shapes: V views, B images, L regions of a view, C channels, M window side, N windows, K prototypes.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit.backbones.swin import Swin
from esvit.backbones.swin_layers import PatchMerging, SwinBlock, WindowAttention
from esvit.head import ProjectionHead
from esvit.loss import view_pairs
from esvit.model import EsViT

NOT_ADJACENT = -100.0
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
MOMENTUM, CENTER_MOMENTUM = 0.996, 0.9
CLIP_NORM = 3.0


class Logits(NamedTuple):
    """What a network gives to the loss.

    Attributes:
        view: (V * B, K).
        regions: One row for each region of each image of each view, K columns.
        features: As many rows, C columns.
        regions_per_view: L of each view.
    """

    view: Tensor
    regions: Tensor
    features: Tensor
    regions_per_view: list[int]


class Centers:
    """What the teacher's logits are centered by."""

    def __init__(self, num_prototypes: int) -> None:
        self.view = torch.zeros(1, num_prototypes)
        self.regions = torch.zeros(1, num_prototypes)

    @torch.no_grad()
    def update(self, teacher: Logits) -> None:
        """Move both towards the teacher's means."""
        self.view = _moved(self.view, teacher.view)
        self.regions = _moved(self.regions, teacher.regions)


def step(
    student: EsViT,
    teacher: EsViT,
    centers: Centers,
    optimizer: torch.optim.Optimizer,
    views: Sequence[Tensor],
    *,
    autocast: AbstractContextManager[object] | None = None,
) -> float:
    """Do a step; gives the loss.

    Args:
        student: Changed in place, as are the next three.
        teacher: Of the first two views.
        centers: Of both tasks.
        optimizer: Of the student.
        views: V batches (B, 3, S, S), equal sizes in a row.
        autocast: What forward passes and loss are done in.
    """
    with autocast or nullcontext():
        targets = logits(teacher, views[:2])
        loss = both_tasks(logits(student, views), targets, centers)
        centers.update(targets)
    value = loss.item()
    optimizer.zero_grad()
    loss.backward()
    for parameter in student.parameters():
        if parameter.grad is not None:
            scale = CLIP_NORM / (parameter.grad.norm(2).item() + 1e-6)
            if scale < 1:
                parameter.grad.mul_(scale)
    optimizer.step()
    with torch.no_grad():
        for new, average in zip(student.parameters(), teacher.parameters(), strict=True):
            average.mul_(MOMENTUM).add_((1 - MOMENTUM) * new)
    return value


def both_tasks(student: Logits, teacher: Logits, centers: Centers) -> Tensor:
    """Half the view task and half the region task, the mean over pairs of views."""
    num_views = len(student.regions_per_view)
    teacher_view = _probs(teacher.view, centers.view).chunk(2)
    teacher_regions = _views(_probs(teacher.regions, centers.regions), teacher.regions_per_view)
    teacher_features = _views(teacher.features, teacher.regions_per_view)
    view = (student.view / STUDENT_TEMPERATURE).chunk(num_views)
    regions = _views(student.regions / STUDENT_TEMPERATURE, student.regions_per_view)
    features = _views(student.features, student.regions_per_view)
    pairs = view_pairs(num_views, 2)
    total = torch.zeros(())
    for t, s in pairs:
        loss = 0.5 * torch.sum(-teacher_view[t] * F.log_softmax(view[s], dim=-1), dim=-1)
        mine, other = F.normalize(features[s], dim=-1), F.normalize(teacher_features[t], dim=-1)
        match = torch.matmul(mine, other.transpose(1, 2)).max(dim=2)[1]
        index = match.unsqueeze(2).expand(-1, -1, teacher_regions[t].shape[2])
        target = torch.gather(teacher_regions[t], 1, index)
        of_regions = torch.sum(-target * F.log_softmax(regions[s], dim=-1), dim=-1)
        total = total + (loss + 0.5 * of_regions.mean(-1)).mean()
    return total / len(pairs)


def logits(network: EsViT, views: Sequence[Tensor]) -> Logits:
    """Run a network over views, those of equal size that follow each other in one pass."""
    pooled, regions, regions_per_view = [], [], []
    for _, equal in groupby(views, key=lambda view: view.shape[-1]):
        group = list(equal)
        features = swin_regions(network.backbone, torch.cat(group))
        pooled.append(F.adaptive_avg_pool1d(features.transpose(1, 2), 1).flatten(1))
        regions.append(features.flatten(0, 1))
        regions_per_view += len(group) * [features.shape[1]]
    rows = torch.cat(regions)
    view = _head(network.head, torch.cat(pooled))
    return Logits(view, _head(network.head_dense, rows), rows, regions_per_view)


def swin_regions(network: Swin, images: Tensor) -> Tensor:
    """Give the region features (B, L, C) of square images."""
    x = network.patch_embed.norm(network.patch_embed.proj(images).flatten(2).transpose(1, 2))
    for stage in network.layers:
        for block in stage.blocks:
            x = _block(block, x)
        if stage.downsample is not None:
            x = _merge(stage.downsample, x)
    return network.norm(x)


def _block(block: SwinBlock, x: Tensor) -> Tensor:
    """Attend inside windows, then the MLP; x is (B, L, C)."""
    B, L, C = x.shape
    side, (M, shift, _) = math.isqrt(L), block.windows
    padding = -side % M
    padded = F.pad(block.norm1(x).view(B, side, side, C), (0, 0, 0, padding, 0, padding))
    mask = None
    if shift:
        padded = torch.roll(padded, shifts=(-shift, -shift), dims=(1, 2))
        mask = _shift_mask(side + padding, M, shift)
    attended = _attend(block.attn, _cut(padded, M), mask)
    joined = _join(attended, M, side + padding)
    if shift:
        joined = torch.roll(joined, shifts=(shift, shift), dims=(1, 2))
    if padding:
        joined = joined[:, :side, :side, :].contiguous()
    x = x + _drop_path(joined.view(B, L, C), block)
    hidden = F.gelu(block.mlp.fc1(block.norm2(x)))
    return x + _drop_path(block.mlp.fc2(hidden), block)


def _attend(attention: WindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attend inside windows (B * N, M * M, C), everything written out."""
    num, T, C = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).reshape(num, T, 3, heads, C // heads).permute(2, 0, 3, 1, 4)
    query, key, value = qkv[0], qkv[1], qkv[2]
    scores = (query * (C // heads) ** -0.5) @ key.transpose(-2, -1)
    rows = attention.relative_position_bias_table[attention.relative_position_index.view(-1)]
    bias = rows.view(T, T, -1).permute(2, 0, 1).contiguous()
    scores = scores + bias.unsqueeze(0)
    if mask is not None:
        N = len(mask)
        scores = scores.view(num // N, N, heads, T, T) + mask.unsqueeze(1).unsqueeze(0)
        scores = scores.view(-1, heads, T, T)
    mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(num, T, C)
    return attention.proj(mixed)


def _shift_mask(side: int, M: int, shift: int) -> Tensor:
    """Make the mask (N, M * M, M * M) of a map of side x side positions."""
    areas = torch.zeros((1, side, side, 1))
    stretches = (slice(0, -M), slice(-M, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in stretches for c in stretches):
        areas[:, rows, columns, :] = number
    windows = _cut(areas, M).squeeze(-1)
    difference = windows.unsqueeze(1) - windows.unsqueeze(2)
    return difference.masked_fill(difference != 0, NOT_ADJACENT).masked_fill(difference == 0, 0.0)


def _cut(x: Tensor, M: int) -> Tensor:
    """Cut maps (B, H, W, C) into windows (B * N, M * M, C)."""
    B, H, W, C = x.shape
    windows = x.view(B, H // M, M, W // M, M, C).permute(0, 1, 3, 2, 4, 5).contiguous()
    return windows.view(-1, M * M, C)


def _join(windows: Tensor, M: int, side: int) -> Tensor:
    """Put windows together again."""
    x = windows.view(-1, side // M, side // M, M, M, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, side, side, windows.shape[-1])


def _merge(merging: PatchMerging, x: Tensor) -> Tensor:
    """Halve maps (B, L, C)."""
    B, L, C = x.shape
    side = math.isqrt(L)
    x = F.pad(x.view(B, side, side, C), (0, 0, 0, side % 2, 0, side % 2))
    parts = [x[:, row::2, column::2, :] for column in (0, 1) for row in (0, 1)]
    return merging.reduction(merging.norm(torch.cat(parts, -1).view(B, -1, 4 * C)))


def _drop_path(x: Tensor, block: SwinBlock) -> Tensor:
    """Drop whole samples."""
    if not block.training or not block.drop_rate:
        return x
    kept = 1 - block.drop_rate
    drawn = kept + torch.rand((len(x), *[1] * (x.ndim - 1)), dtype=x.dtype)
    return x.div(kept) * drawn.floor_()


def _head(head: ProjectionHead, x: Tensor) -> Tensor:
    """Give the logits of rows (R, C)."""
    layer = head.last_layer
    weight = torch._weight_norm(layer.weight_v, layer.weight_g, 0)
    return F.linear(F.normalize(head.mlp(x), dim=-1), weight)


def _moved(center: Tensor, teacher_logits: Tensor) -> Tensor:
    """Give a center after a batch."""
    mean = torch.sum(teacher_logits, dim=0, keepdim=True) / len(teacher_logits)
    return center * CENTER_MOMENTUM + mean * (1 - CENTER_MOMENTUM)


def _probs(teacher_logits: Tensor, center: Tensor) -> Tensor:
    """Center and sharpen the teacher's logits."""
    return ((teacher_logits - center) / TEACHER_TEMPERATURE).softmax(dim=-1).detach()


def _views(rows: Tensor, regions_per_view: Sequence[int]) -> list[Tensor]:
    """Cut rows into one (B, L, columns) a view."""
    B = len(rows) // sum(regions_per_view)
    parts = torch.split(rows, [B * L for L in regions_per_view])
    return [part.view(B, L, -1) for part, L in zip(parts, regions_per_view, strict=True)]
