"""Whitening of embeddings by their principal components (Jegou and Chum 2012, section 3).

What images of one kind have in common makes their embeddings point the same way, and the few
directions in which they differ most hide the others from a cosine. Whitening takes the common part
away and gives every principal direction the same weight. It is learnt from images alone.

Shapes: N images, C features of an embedding.
"""

from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from esvit.backbones import AllOutputs
from trainer.data.loader import LoaderConfig
from trainer.evaluation.choice import open_images
from trainer.evaluation.features import Extraction, extract
from trainer.evaluation.images import SquareDataset, Squares
from trainer.onnx_graph import Pixels2Outputs

SMALLEST_SPREAD = 0.01
"""Of a direction, as a share of the largest one's: what is less is noise, and is not blown up."""

BATCH = 32


class Whitening(NamedTuple):
    """A linear map, (x - mean) @ matrix: the first numbers of its result are those that vary most.

    Attributes:
        mean: (C,) of the images it was learnt from.
        matrix: (C, C), one column a principal direction. Of those images the mean squared length of
            a whitened embedding is 1.
        num_images: N.
    """

    mean: Tensor
    matrix: Tensor
    num_images: int


def fit_whitening(features: Tensor) -> Whitening:
    """Learn it from embeddings (N, C).

    Raises:
        ValueError: if they are too few to tell the directions' spreads.
    """
    N, C = features.shape
    if N < 4 * C:
        raise ValueError(f"whitening of {C} features needs {4 * C} images, {N} were given")
    mean = features.double().mean(dim=0)
    centred = features.double() - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / N)  # ascending
    spreads = variances.clamp_min(0).sqrt().flip(0)
    scales = spreads.clamp_min(SMALLEST_SPREAD * float(spreads[0]))
    length = (spreads / scales).square().sum().sqrt()
    matrix = directions.flip(1) / (scales * length)
    return Whitening(mean.float(), matrix.float(), N)


def learn_whitening(graph: Pixels2Outputs, images: str, console: Console) -> Whitening:
    """Learn it from what a network says of images.

    Args:
        graph: The network, with which the images' squares are asked.
        images: A folder, or .zip, .tar or .parquet files.
        console: Where progress is shown.

    Raises:
        FileNotFoundError: if there are no images.
        ValueError: if they are too few, or can only be streamed.
    """
    source = open_images(images)
    indices = range(len(source))

    @torch.inference_mode()
    def compute(squares: Squares) -> Tensor:
        outputs: AllOutputs = graph(squares.pixels.permute(0, 2, 3, 1))
        return outputs.pooled

    how = Extraction(
        compute=compute,
        key={},
        batch=BATCH,
        loader=LoaderConfig(num_workers=0),
        cache=None,
        console=console,
    )
    rows = extract(SquareDataset(source, indices, graph.spec), source, indices, how, name=images)
    return fit_whitening(rows.all())


def whiten(graph: Pixels2Outputs, whitening: Whitening) -> None:
    """Let a graph give whitened embeddings; its other outputs stay."""
    C = len(whitening.mean)
    layer = nn.Linear(C, C)
    with torch.no_grad():
        layer.weight.copy_(whitening.matrix.T)
        layer.bias.copy_(-whitening.mean @ whitening.matrix)
    graph.last = layer
