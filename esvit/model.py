"""EsViT: a backbone with one head for whole views and one for their regions, over many views.

Both the student and the teacher are one of these. The state dict has the published keys: those of
the backbone bare, those of the heads under `head.` and `head_dense.`.

Shape letters: V views, B images in each, L regions of a view, R region rows (the sum of B * L over
the views), C features, D bottleneck, K prototypes. Rows lie view by view, in a view image by
image, in an image region by region.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esvit.backbones import Backbone, Features
from esvit.head import ProjectionHead, Prototypes


class ViewFeatures(NamedTuple):
    """Backbone features of a list of views.

    Attributes:
        pooled: (V * B, C) one row for each view of each image.
        regions: (R, C) one row for each region.
        regions_per_view: L of each of the V views.
    """

    pooled: Tensor
    regions: Tensor
    regions_per_view: tuple[int, ...]


class Projections(NamedTuple):
    """What the losses need, before any logit is made.

    Logits are `view @ view_prototypes.weight.T` and `regions @ region_prototypes.weight.T`; a loss
    may make them a few rows at a time. Prototypes are the network's parameters, no copies: they are
    right until these change. The region fields are None in a model without a region head.

    Attributes:
        view: (V * B, D) view bottleneck on the unit sphere.
        view_prototypes: K of them.
        regions: (R, D) region bottleneck on the unit sphere, or None.
        region_prototypes: K of them, or None.
        region_features: (R, C) backbone features, by which regions are matched.
        regions_per_view: L of each of the V views.
    """

    view: Tensor
    view_prototypes: Prototypes
    regions: Tensor | None
    region_prototypes: Prototypes | None
    region_features: Tensor
    regions_per_view: tuple[int, ...]


class Logits(NamedTuple):
    """What the losses need, written out.

    Attributes:
        view: (V * B, K).
        regions: (R, K), or None in a model without a region head.
        region_features: (R, C) backbone features, by which regions are matched.
        regions_per_view: L of each of the V views.
    """

    view: Tensor
    regions: Tensor | None
    region_features: Tensor
    regions_per_view: tuple[int, ...]


class EsViT(nn.Module):
    """A backbone, a view head and (unless trained on views alone) a region head."""

    def __init__(
        self, backbone: Backbone, head: ProjectionHead, head_dense: ProjectionHead | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.head_dense = head_dense
        # torch leaves the two registrations unannotated.
        self.register_state_dict_post_hook(_bare_backbone_keys)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_full_backbone_keys)  # type: ignore[no-untyped-call]

    def forward(self, views: Sequence[Tensor]) -> Projections:
        """Project views as far as the bottlenecks.

        This is `forward` and not `logits`, so that a wrapper such as DistributedDataParallel sees
        the pass of the losses that never store logits.

        Args:
            views: V batches (B, 3, H, W) of any sizes; those of equal size share a batch.
        """
        pooled, regions, regions_per_view = self.features(views)
        region_head = self.head_dense
        return Projections(
            view=self.head.bottleneck(pooled),
            view_prototypes=self.head.prototypes,
            regions=None if region_head is None else region_head.bottleneck(regions),
            region_prototypes=None if region_head is None else region_head.prototypes,
            region_features=regions,
            regions_per_view=regions_per_view,
        )

    def logits(self, views: Sequence[Tensor]) -> Logits:
        """Project views to logits, all of them at once; takes `forward`'s arguments."""
        pooled, regions, regions_per_view = self.features(views)
        region_head = self.head_dense
        return Logits(
            view=self.head(pooled),
            regions=None if region_head is None else region_head(regions),
            region_features=regions,
            regions_per_view=regions_per_view,
        )

    def features(self, views: Sequence[Tensor]) -> ViewFeatures:
        """Run the backbone over views, those of equal size in one batch.

        Raises:
            ValueError: if there is no view, or views differ in their number of images.
        """
        if not views or len({len(view) for view in views}) != 1:
            raise ValueError(f"views hold {[len(v) for v in views]} images, expected equal numbers")
        of_view: dict[int, Features] = {}
        groups = _equal_sizes(views)
        batches = [torch.cat([views[number] for number in numbers]) for numbers in groups]
        for numbers, (pooled, regions) in zip(groups, self.backbone.features(batches), strict=True):
            parts = zip(pooled.chunk(len(numbers)), regions.chunk(len(numbers)), strict=True)
            of_view |= zip(numbers, (Features(*part) for part in parts), strict=True)
        in_order = [of_view[number] for number in range(len(views))]
        return ViewFeatures(
            pooled=torch.cat([features.pooled for features in in_order]),
            regions=torch.cat([features.regions.flatten(0, 1) for features in in_order]),
            regions_per_view=tuple(features.regions.shape[1] for features in in_order),
        )


@contextmanager
def evaluating(*networks: nn.Module) -> Generator[None]:
    """Put networks into evaluation mode for the time of the block, and back into their own."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def _equal_sizes(views: Sequence[Tensor]) -> list[list[int]]:
    """Group the numbers of the views by image size, in the order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, view in enumerate(views):
        groups.setdefault(tuple(view.shape[1:]), []).append(number)
    return list(groups.values())


_BACKBONE = "backbone."
HEADS = ("head.", "head_dense.")
"""Beginnings of the names of tensors that are no part of a backbone."""


# The two signatures below are torch's.
def _bare_backbone_keys(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    """Take the prefix off the backbone's keys as a state dict is made, keeping the order."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + key.removeprefix(prefix).removeprefix(_BACKBONE)] = state.pop(key)


def _full_backbone_keys(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """Put the prefix back on as a state dict is loaded; torch hands over a copy."""
    for key in [key for key in state if key.startswith(prefix)]:
        bare = key.removeprefix(prefix)
        if not bare.startswith(HEADS):
            state[prefix + _BACKBONE + bare] = state.pop(key)
