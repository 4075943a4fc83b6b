"""Whitening of embeddings by their principal components (Jegou and Chum 2012, section 3).

What images of one kind have in common makes their embeddings point the same way, and the few
directions in which they differ most hide the others from a cosine. Whitening takes the common part
away and gives every principal direction the same weight. It is learnt from images alone.

It begins either at the pooled feature, which does not know where things are, or at the layout: the
maps of all stages, from lines to things (hypercolumns, Hariharan et al. 2015), each in 4 x 4 parts,
of which the principal components keep what tells images apart. The latter is made for pictures of
one thing in the middle, such as icons, logos and products.

Shapes: B and N images, H W height and width of a stage's map, C its channels, P its parts, F
numbers that whitening begins with, D numbers of an embedding.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from esvit.backbones import AllOutputs
from esvit.weights import digest
from trainer.data.loader import LoaderConfig
from trainer.evaluation.choice import choose, open_images
from trainer.evaluation.features import Extraction, extract
from trainer.evaluation.images import SquareDataset, Squares
from trainer.onnx_graph import Pixels2Outputs

Begin = Literal["pooled", "layout"]

SMALLEST_SPREAD = 0.01
"""Of a direction, as a share of the largest one's: what is less is noise, and is not blown up."""

IMAGES_PER_DIRECTION = 4
"""That are needed at least, to tell how much embeddings vary along it."""

LAYOUT_SIDE = 4
"""Parts of a layout along each side, where a map has as many."""

MOST_IMAGES = 12_000
"""To learn from, drawn by a fixed seed where there are more."""

MOST_BYTES = 5 * 2**28
"""Of the numbers of these images, which are held twice: where one has many, images are fewer."""

BATCH = 32


class Whitening(NamedTuple):
    """A linear map, (x - mean) @ matrix: the first numbers of its result are those that vary most.

    Attributes:
        mean: (F,) of the images it was learnt from.
        matrix: (F, D), one column a principal direction. Of those images the mean squared length of
            a whitened embedding is 1.
    """

    mean: Tensor
    matrix: Tensor


def fit_whitening(features: Tensor, num_directions: int) -> Whitening:
    """Learn it from numbers of images.

    Args:
        features: (N, F).
        num_directions: D, at most F.

    Raises:
        ValueError: if the images are too few to tell the directions' spreads.
    """
    N, least = len(features), IMAGES_PER_DIRECTION * num_directions
    if least > N:
        raise ValueError(f"whitening to {num_directions} numbers needs {least} images, not {N}")
    mean = features.mean(dim=0)
    spreads, directions = _principal(features - mean, num_directions)
    scales = spreads.clamp_min(SMALLEST_SPREAD * float(spreads[0]))
    length = torch.linalg.vector_norm(spreads / scales)
    return Whitening(mean, directions / (scales * length))


class Whitened(nn.Module):
    """Gives the whitened embeddings (B, D) of a backbone's outputs.

    Attributes:
        begin: What whitening begins with.
        num_images: Of how many images it was learnt.
    """

    def __init__(self, beginning: nn.Module, begin: Begin, whitening: Whitening, num_images: int):
        super().__init__()
        self.begin = begin
        self.num_images = num_images
        self.beginning = beginning
        self.linear = nn.Linear(*whitening.matrix.shape)
        with torch.no_grad():
            self.linear.weight.copy_(whitening.matrix.T)
            self.linear.bias.copy_(-whitening.mean @ whitening.matrix)

    def forward(self, outputs: AllOutputs) -> Tensor:
        """Map them."""
        embeddings: Tensor = self.linear(self.beginning(outputs))
        return embeddings


def learn_whitening(
    graph: Pixels2Outputs, images: str, begin: Begin, cache: Path, console: Console
) -> Whitened:
    """Learn it from what a network says of images, of at most `MOST_IMAGES`.

    Args:
        graph: The network, which says how an image becomes its pixels.
        images: A folder, or .zip, .tar or .parquet files.
        begin: What whitening begins with.
        cache: Folder where features are kept for the next time.
        console: Where progress is shown.

    Raises:
        FileNotFoundError: if there are no images.
        ValueError: if they are too few, or can only be streamed.
        OSError: if the cache cannot be written.
    """
    outline = _outline(graph)
    beginning = _beginning(outline, begin)
    num_features = beginning(outline).shape[1]
    num_directions = outline.pooled.shape[1]
    most = max(IMAGES_PER_DIRECTION * num_directions, MOST_BYTES // (4 * num_features))
    chosen = choose(open_images(images), min(MOST_IMAGES, most), seed=0)

    @torch.inference_mode()
    def compute(squares: Squares) -> Tensor:
        found: Tensor = beginning(graph.all_outputs(squares.pixels.permute(0, 2, 3, 1)))
        return found

    how = Extraction(
        compute=compute,
        key={
            "weights": digest(graph.backbone.state_dict()),
            "preprocess": asdict(graph.spec),
            "begin": [begin, LAYOUT_SIDE, [tuple(x.shape[2:]) for x in outline.pyramid]],
            "torch": torch.__version__,
        },
        batch=BATCH,
        loader=LoaderConfig(num_workers=0),
        cache=cache,
        console=console,
    )
    dataset = SquareDataset(chosen.source, chosen.indices, graph.spec)
    rows = extract(dataset, chosen.source, chosen.indices, how, name=images)
    whitening = fit_whitening(rows.all(), num_directions)
    return Whitened(beginning, begin, whitening, len(rows)).eval()


class Pooled(nn.Module):
    """Gives (B, C), the pooled feature."""

    def forward(self, outputs: AllOutputs) -> Tensor:
        """Take it."""
        return outputs.pooled


class Layout(nn.Module):
    """Gives (B, F), of each stage's map the means of its parts.

    Positions count as unit vectors: stages differ in the size of their numbers, not in what they
    have to say.
    """

    def __init__(self, sides: Sequence[tuple[int, int]]) -> None:
        """Take height and width of each stage's map."""
        super().__init__()
        for stage, (height, width) in enumerate(sides):
            means = torch.kron(_means_along(height), _means_along(width))  # (P, H * W)
            self.register_buffer(f"means{stage}", means, persistent=False)

    def forward(self, outputs: AllOutputs) -> Tensor:
        """Average the positions of each part."""
        maps = (F.normalize(x, dim=1).flatten(2).mT for x in outputs.pyramid)  # (B, H * W, C)
        parts = (self.get_buffer(f"means{stage}") @ x for stage, x in enumerate(maps))
        return torch.cat([x.flatten(1) for x in parts], dim=1)


def _means_along(length: int) -> Tensor:
    """Give the weights of an axis' positions in its parts, (parts, length)."""
    unit = torch.eye(length).unsqueeze(1)
    return F.adaptive_avg_pool1d(unit, min(length, LAYOUT_SIDE))[:, 0].T


def _beginning(outline: AllOutputs, begin: Begin) -> nn.Module:
    """Make what gives the numbers (B, F) that whitening begins with."""
    if begin == "pooled":
        return Pooled()
    return Layout([(x.shape[2], x.shape[3]) for x in outline.pyramid])


@torch.inference_mode()
def _outline(graph: Pixels2Outputs) -> AllOutputs:
    """Give the outputs of one black picture, for their shapes."""
    side = graph.spec.crop
    return graph.all_outputs(torch.zeros(1, side, side, 3, dtype=torch.uint8))


def _principal(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the spreads (D,) and directions (F, D) in which rows (N, F) vary most.

    A few directions of many are found by randomised subspace iteration (Halko et al. 2011), with a
    fixed seed: the same rows give the same directions.
    """
    N, total = centred.shape
    if count < total:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, values, directions = torch.svd_lowrank(centred, q=min(count + 32, total), niter=6)
        return values[:count] / N**0.5, directions[:, :count]
    centred = centred.double()
    variances, directions = torch.linalg.eigh(centred.T @ centred / N)  # ascending
    return variances.clamp_min(0).sqrt().flip(0).float(), directions.flip(1).float()
