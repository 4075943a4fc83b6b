"""The numbers of `loss.py` without ever storing logits, with its own backward.

Both tasks are one sum: over pairs of a student row i and a teacher row t with weight a_it, the
cross-entropy of the teacher's distribution p_t and the student's softmax of s_i = W x_i / tau.
Since p_t sums to one, that cross-entropy is logsumexp(s_i) - p_t . s_i, and what is left is linear:

    loss   = sum_i n_i logsumexp(s_i) - sum_t <y_t, z_t> / tau,     n_i = sum_t a_it
    dx_i   = (n_i e_i - sum_t a_it y_t) / tau
    dW     = (sum_i q_i n_i x_i^T - sum_t p_t z_t^T) / tau

with q_i the student's distribution, e_i = W^T q_i and y_t = W^T p_t the mean prototypes under q_i
and p_t, and z_t = sum_i a_it x_i. So student and teacher rows need the same three products with the
prototypes (`_expect`), the gathering and summing of targets happens among D columns instead of K,
and the gradient is ready when the loss is: nothing else is kept for the backward pass.

Rows go through in chunks of a fixed number of bytes, prototypes in blocks that stay in a cache;
memory does not grow with the batch. Statistics are float32; the products follow autocast.

Shapes: B images, S and T student and teacher rows (regions of all views) of an image, D columns of
the bottleneck, K prototypes, N rows of all images.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esvit.loss import Loss, match_regions, region_head, split_views, view_pairs
from esvit.model import Projections

CHUNK_BYTES = 64 * 2**20
"""Unnormalised probabilities that live at once."""

BLOCK_BYTES = 2**21
"""Logits that are worked on at once: about the second-level cache of a core."""


class Targets(NamedTuple):
    """The teacher's side of the loss; nothing here gets a gradient.

    Attributes:
        bottleneck: (B, T, D) of the teacher.
        prototypes: (K, D) of the teacher.
        center: (1, K).
        temperature: The teacher's.
        weights: (B, S, T), a_it: how much each pair of rows counts.
    """

    bottleneck: Tensor
    prototypes: Tensor
    center: Tensor
    temperature: float
    weights: Tensor


def fused_cross_entropy(
    bottleneck: Tensor, prototypes: Tensor, temperature: float, targets: Targets
) -> Tensor:
    """Weighted sum of cross-entropies between student and teacher rows.

    Args:
        bottleneck: (B, S, D) of the student.
        prototypes: (K, D) of the student.
        temperature: The student's.
        targets: The teacher's side.

    Returns:
        Float32 scalar, differentiable once in `bottleneck` and `prototypes`.
    """
    loss: Tensor = _FusedCrossEntropy.apply(bottleneck, prototypes, temperature, targets)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return loss


def assignment(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Say how much each pair of rows counts in the mean over pairs of views.

    Args:
        student: (B, L, C) region features of each student view.
        teacher: (B, L, C) region features of each teacher view, the first of the student's.

    Returns:
        (B, S, T) float32: in each student row one entry for each other teacher view, at the match.
    """
    shares = [
        view.new_full((len(view), view.shape[1]), 1 / view[..., 0].numel(), dtype=torch.float32)
        for view in student
    ]
    num_pairs = len(view_pairs(len(student), len(teacher)))
    rows = torch.cat(tuple(student), dim=1)
    blocks = []
    for index, view in enumerate(teacher):
        share = [torch.zeros_like(s) if i == index else s / num_pairs for i, s in enumerate(shares)]
        block = view.new_zeros(*rows.shape[:2], view.shape[1], dtype=torch.float32)
        match = match_regions(rows, view).unsqueeze(-1)
        blocks.append(block.scatter_(-1, match, torch.cat(share, dim=1).unsqueeze(-1)))
    return torch.cat(blocks, dim=-1)


class FusedLoss(Loss):
    """`Loss` in a fraction of its memory and time; the same arguments, state and numbers."""

    def view_task(
        self, student: Projections, teacher: Projections, teacher_temperature: float
    ) -> Tensor:
        """Mean cross-entropy over all pairs of views: a view is its own only region."""
        student_views = split_views(student.view, (1,) * len(student.regions_per_view))
        teacher_views = split_views(teacher.view, (1,) * len(teacher.regions_per_view))
        targets = Targets(
            torch.cat(teacher_views, dim=1).detach(),
            teacher.view_prototypes.detach(),
            self.center,
            teacher_temperature,
            assignment(
                [torch.ones_like(view[..., :1]) for view in student_views],
                [torch.ones_like(view[..., :1]) for view in teacher_views],
            ),
        )
        rows = torch.cat(student_views, dim=1)  # (B, V, D)
        return fused_cross_entropy(rows, student.view_prototypes, self.student_temperature, targets)

    def region_task(
        self, student: Projections, teacher: Projections, teacher_temperature: float
    ) -> Tensor:
        """Mean cross-entropy over all pairs of views of their matched regions."""
        student_bottleneck, student_prototypes = region_head(student)
        teacher_bottleneck, teacher_prototypes = region_head(teacher)
        teacher_views = split_views(teacher_bottleneck, teacher.regions_per_view)
        targets = Targets(
            torch.cat(teacher_views, dim=1).detach(),
            teacher_prototypes.detach(),
            self.center_grid,
            teacher_temperature,
            assignment(
                split_views(student.region_features, student.regions_per_view),
                split_views(teacher.region_features, teacher.regions_per_view),
            ),
        )
        rows = torch.cat(split_views(student_bottleneck, student.regions_per_view), dim=1)
        return fused_cross_entropy(rows, student_prototypes, self.student_temperature, targets)


class _FusedCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one go; backward only scales what forward has made."""

    @staticmethod
    def forward(
        ctx: Any,  # torch gives contexts no public type
        bottleneck: Tensor,
        prototypes: Tensor,
        temperature: float,
        targets: Targets,
    ) -> Tensor:
        """Make the loss, and the gradients that are needed."""
        device = bottleneck.device.type
        dtype = (
            torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else bottleneck.dtype
        )
        wants_prototypes = ctx.needs_input_grad[1]
        with torch.autocast(device, enabled=False):
            loss, grad_rows, grad_prototypes = _loss_and_gradients(
                bottleneck.float(), prototypes.to(dtype), temperature, targets, wants_prototypes
            )
        ctx.gradients = (
            grad_rows.to(bottleneck.dtype),
            grad_prototypes.to(prototypes.dtype) if grad_prototypes is not None else None,
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Scale the gradients by the loss's own; in place, they are used once."""
        if ctx.gradients is None:
            raise RuntimeError("the fused loss keeps its gradients for one backward pass only")
        (grad_rows, grad_prototypes), ctx.gradients = ctx.gradients, None
        grad_rows.mul_(grad_loss)
        if grad_prototypes is not None:
            grad_prototypes.mul_(grad_loss)
        return grad_rows, grad_prototypes, None, None


def _loss_and_gradients(
    rows: Tensor, prototypes: Tensor, temperature: float, targets: Targets, wants_prototypes: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The three sums of the module's docstring; the prototypes' dtype is that of the products."""
    weights, dtype = targets.weights, prototypes.dtype
    totals = weights.sum(dim=-1, keepdim=True)  # n, (B, S, 1)
    gathered = weights.transpose(1, 2) @ rows  # z, (B, T, D)
    grad = torch.zeros_like(prototypes, dtype=torch.float32) if wants_prototypes else None

    workspace = _Workspace(
        prototypes, max(rows[..., 0].numel(), targets.bottleneck[..., 0].numel())
    )
    student = _expect(
        _Rows(rows / temperature, totals * rows / temperature),
        _Keys(prototypes, None),
        _Values(prototypes, grad),
        workspace,
    )
    teacher = _expect(
        _Rows(targets.bottleneck.float() / targets.temperature, gathered / -temperature),
        _Keys(targets.prototypes.to(dtype), targets.center.flatten() / -targets.temperature),
        _Values(prototypes, grad),
        workspace,
    )
    loss = (totals.squeeze(-1) * student.logsumexp).sum()
    loss = loss - (teacher.mean * gathered).sum() / temperature
    grad_rows = (totals * student.mean - weights @ teacher.mean) / temperature
    return loss, grad_rows, grad


class _Rows(NamedTuple):
    """Rows of one network over its temperature, and what each gives to the gradient of W."""

    queries: Tensor  # (B, L, D)
    cotangents: Tensor  # (B, L, D) float32


class _Keys(NamedTuple):
    """What makes logits of rows."""

    prototypes: Tensor  # (K, D)
    bias: Tensor | None  # (K,) float32


class _Values(NamedTuple):
    """What is averaged over each row's softmax, and where its gradient is gathered."""

    prototypes: Tensor  # (K, D)
    grad: Tensor | None  # (K, D) float32


class _Expectation(NamedTuple):
    """Of each row's softmax over the prototypes."""

    mean: Tensor  # (B, L, D) float32, of the values
    logsumexp: Tensor  # (B, L) float32


class _Block(NamedTuple):
    """Some prototypes, and room for what a chunk of N rows says of them."""

    span: slice
    exps: Tensor  # (N, width), kept until the chunk is done
    logits: Tensor  # (N, width) float32, used again by the next block


class _Workspace:
    """Memory for one chunk of rows, used again by all: fresh pages cost as much as the sums."""

    def __init__(self, like: Tensor, num_rows: int) -> None:
        """Take memory for at most `num_rows` rows against prototypes (K, D)."""
        self.K = len(like)
        self.max_rows = min(num_rows, max(1, CHUNK_BYTES // (self.K * like.element_size())))
        self.width = min(self.K, max(256, BLOCK_BYTES // (4 * self.max_rows) // 256 * 256))
        self.exps = like.new_empty(self.max_rows * self.K)
        self.logits = (
            self.exps
            if like.dtype == torch.float32
            else like.new_empty(self.max_rows * self.width, dtype=torch.float32)
        )

    def blocks(self, num_rows: int) -> list[_Block]:
        """Cut the memory into one contiguous piece for each block of prototypes."""
        ends = range(self.width, self.K + self.width, self.width)
        spans = [slice(end - self.width, min(end, self.K)) for end in ends]
        blocks = []
        for span in spans:
            start, length = num_rows * span.start, num_rows * (span.stop - span.start)
            exps = self.exps[start : start + length].view(num_rows, -1)
            logits = exps if self.logits is self.exps else self.logits[:length].view(num_rows, -1)
            blocks.append(_Block(span, exps, logits))
        return blocks


def _expect(rows: _Rows, keys: _Keys, values: _Values, workspace: _Workspace) -> _Expectation:
    """Give each row's mean value under its softmax; adds softmax^T cotangents to `values.grad`."""
    B, L, D = rows.queries.shape
    num_chunks = -(-B * L // workspace.max_rows)
    chunk_rows = -(-B * L // num_chunks)
    means, logsumexps = [], []
    for queries, cotangents in zip(
        torch.split(rows.queries.flatten(0, 1).to(values.prototypes.dtype), chunk_rows),
        torch.split(rows.cotangents.flatten(0, 1), chunk_rows),
        strict=True,
    ):
        blocks = workspace.blocks(len(queries))
        mean, logsumexp, maxima = _expect_chunk(queries, keys, values.prototypes, blocks)
        means.append(mean)
        logsumexps.append(logsumexp)
        if values.grad is not None:
            shifts = [maximum - logsumexp for maximum in maxima]
            _add_products(values.grad, blocks, shifts, cotangents)
    return _Expectation(torch.cat(means).view(B, L, D), torch.cat(logsumexps).view(B, L))


def _expect_chunk(
    queries: Tensor, keys: _Keys, values: Tensor, blocks: list[_Block]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Fill the blocks; (N, D) means, (N, 1) logsumexps, and the (N, 1) maximum of each block.

    One sweep: what was summed under an older maximum is rescaled (Milakov and Gimelshein 2018,
    Online normalizer calculation for softmax).
    """
    mean = queries.new_zeros(queries.shape, dtype=torch.float32)
    total = mean.new_zeros(len(mean), 1)
    maximum = torch.full_like(total, -torch.inf)
    maxima = []
    for block in blocks:
        block_maximum, block_total = _exponentiate(queries, keys, block)
        maxima.append(block_maximum)
        new_maximum = torch.maximum(maximum, block_maximum)
        old, new = (maximum - new_maximum).exp_(), (block_maximum - new_maximum).exp_()
        total = total * old + block_total * new
        mean.mul_(old).addcmul_((block.exps @ values[block.span]).float(), new)
        maximum = new_maximum
    return mean.div_(total), maximum + total.log(), maxima


def _exponentiate(queries: Tensor, keys: _Keys, block: _Block) -> tuple[Tensor, Tensor]:
    """Write exp(logits - their maximum) into the block; (N, 1) maxima and sums, float32."""
    torch.mm(queries, keys.prototypes[block.span].T, out=block.exps)
    logits = block.logits.copy_(block.exps)  # in float32 they are the same memory, nothing moves
    if keys.bias is not None:
        logits.add_(keys.bias[block.span])
    maximum = logits.amax(dim=1, keepdim=True)
    logits.sub_(maximum).exp_()
    block.exps.copy_(logits)
    return maximum, logits.sum(dim=1, keepdim=True)


def _add_products(
    grad: Tensor, blocks: list[_Block], shifts: list[Tensor], cotangents: Tensor
) -> None:
    """Add softmax^T cotangents to the (K, D) gradient; the softmax's scale goes to D columns."""
    for block, shift in zip(blocks, shifts, strict=True):
        scaled = (cotangents * shift.exp()).to(block.exps.dtype)
        if scaled.dtype == grad.dtype:
            grad[block.span].addmm_(block.exps.T, scaled)
        else:
            grad[block.span].add_(block.exps.T @ scaled)
