"""Retrieval: is the most similar picture one of the same thing?

Each query looks for its like in a gallery by the cosine of embeddings. Recall at k is the share of
queries with a right picture among the k nearest; average precision weighs the places of all right
ones. Several pairs of queries and gallery, as of vendors, are measured one by one and averaged.

Shapes: N queries, M pictures of the gallery, C features.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.evaluation.choice import Chosen, choose, open_images
from trainer.evaluation.columns import (
    Condition,
    Record,
    check_column,
    parse_condition,
    read_records,
    select,
)
from trainer.evaluation.config import RetrievalConfig
from trainer.evaluation.subject import Subject

logger = logging.getLogger(__name__)

PARTS = frozenset(("train", "val", "test"))
"""Folders of a folder of both training and test images."""

_COSINES = 1 << 24
"""How many are held at a time."""


class Pictures(NamedTuple):
    """Pictures and what they are of.

    Attributes:
        features: (M, C), of any length.
        identities: (M,) int64, equal for pictures of the same thing.
        numbers: (M,) int64, equal for the same picture only.
    """

    features: Tensor
    identities: Tensor
    numbers: Tensor

    def of(self, positions: Sequence[int]) -> "Pictures":
        """Take some of them."""
        chosen = torch.tensor(positions, dtype=torch.int64)
        return Pictures(*(column[chosen] for column in self))


class Ranking(NamedTuple):
    """How N queries fare.

    Attributes:
        first: (N,) int64, place of the first right picture, from 0.
        average_precision: (N,) float64, 0 to 1.
    """

    first: Tensor
    average_precision: Tensor


class Opened(NamedTuple):
    """The pictures of a path that can be read, what is known of them, and how many cannot."""

    pictures: Pictures
    records: list[Record]
    unreadable: int


class Pair(NamedTuple):
    """Queries to be looked up in a gallery, and what both are called."""

    names: tuple[str, str]
    queries: Pictures
    gallery: Pictures


def look_up(queries: Pictures, gallery: Pictures) -> Ranking:
    """Rank the gallery for each query that has a right picture in it; none finds itself.

    Pictures that are equally similar keep the gallery's order.
    """
    of_gallery = F.normalize(gallery.features.float(), dim=-1)
    step = max(1, _COSINES // len(of_gallery))
    blocks = zip(*(torch.split(column, step) for column in queries), strict=True)
    rankings = [_rank(Pictures(*block), gallery, of_gallery) for block in blocks]
    return Ranking(*map(torch.cat, zip(*rankings, strict=True)))


def measure_retrieval(config: RetrievalConfig, subject: Subject) -> dict[str, Any]:  # JSON
    """Look every query up in its gallery.

    Raises:
        FileNotFoundError: if images are missing.
        ValueError: if a condition or column makes no sense, or nothing can be found.
    """
    if not config.k or min(config.k) < 1:
        raise ValueError(f"k is {config.k}, expected 1 or more")
    if config.queries is not None and config.across is not None:
        raise ValueError("--across parts the images of --data; it takes no --queries")
    identities: dict[str, int] = {}
    gallery = _open(config.data, config, subject, identities, is_gallery=True)
    queries = gallery
    if config.queries is not None:
        queries = _open(config.queries, config, subject, identities, is_gallery=False)
    asked = select(queries.records, _conditions(queries.records, config.ask))
    directions = [_direction(pair, config.k) for pair in _pairs(queries, gallery, asked, config)]
    found = [direction for direction in directions if direction["queries"]]
    if not found:
        raise ValueError("no query meets the conditions and has a right picture in its gallery")
    names = [*(f"recall_at_{k}" for k in config.k), "map"]
    return {
        **{name: sum(direction[name] for direction in found) / len(found) for name in names},
        "identity": config.identity,
        "across": config.across,
        "where": config.where,
        "ask": config.ask,
        "unreadable": gallery.unreadable + (queries.unreadable if queries is not gallery else 0),
        "directions": directions,
    }


def _rank(queries: Pictures, gallery: Pictures, of_gallery: Tensor) -> Ranking:
    """Rank the gallery, whose normalised features are given, for a few queries."""
    is_self = queries.numbers[:, None] == gallery.numbers
    is_right = (queries.identities[:, None] == gallery.identities) & ~is_self
    can_be_found = is_right.any(1)
    normalised = F.normalize(queries.features[can_be_found].float(), dim=-1)
    cosines = (normalised @ of_gallery.T).masked_fill_(is_self[can_be_found], -torch.inf)
    order = cosines.argsort(dim=1, descending=True, stable=True)
    hits = is_right[can_be_found].gather(1, order)
    precision = hits.cumsum(1) / torch.arange(1, len(of_gallery) + 1).double()
    return Ranking(hits.int().argmax(dim=1), (precision * hits).sum(1) / hits.sum(1))


def _open(
    path: str,
    config: RetrievalConfig,
    subject: Subject,
    identities: dict[str, int],
    *,
    is_gallery: bool,
) -> Opened:
    """Give the embeddings of the images of a path that count; new identities get a number."""
    source = open_images(path)
    conditions = [parse_condition(text) for text in (*config.where, *config.ask)]
    columns = [*filter(None, (config.identity, config.across)), *(c.column for c in conditions)]
    records = read_records(path, source, columns)
    for column in filter(None, (config.identity, config.across)):
        check_column(records, column)
    classes = source.index.classes
    if config.identity == "class" and classes and PARTS.issuperset(classes):
        raise ValueError(
            f"{path} has the folders {', '.join(classes)}, which are no identities; name one of "
            "them, or the --identity"
        )
    chosen = set(choose(source, config.max_images, config.seed).indices)
    counted = [
        i
        for i in select(records, _conditions(records, config.where))
        if i in chosen and records[i][config.identity]
    ]
    if not counted:
        raise ValueError(f"{path}: no image meets the conditions and has a {config.identity!r}")
    name = "gallery" if is_gallery else "queries"
    rows = subject.features(Chosen(source, counted), "embedding", name=name)
    numbers = torch.tensor(counted)[rows.positions]
    known = [records[i] for i in numbers.tolist()]
    codes = [identities.setdefault(r[config.identity], len(identities)) for r in known]
    pictures = Pictures(rows.all(), torch.tensor(codes), numbers if is_gallery else -1 - numbers)
    return Opened(pictures, known, rows.asked - len(rows))


def _conditions(records: Sequence[Record], texts: tuple[str, ...]) -> list[Condition]:
    """Read conditions on columns that there are."""
    conditions = [parse_condition(text) for text in texts]
    for condition in conditions:
        check_column(records, condition.column)
    return conditions


def _pairs(
    queries: Opened, gallery: Opened, asked: Sequence[int], config: RetrievalConfig
) -> Iterator[Pair]:
    """Give what is looked up where."""
    if config.across is None:
        yield Pair(("queries", "gallery"), queries.pictures.of(asked), gallery.pictures)
        return
    values = [record[config.across] for record in gallery.records]
    for one, other in itertools.permutations(sorted(set(values) - {""}), 2):
        some = [i for i in asked if values[i] == one]
        shown = [i for i, value in enumerate(values) if value == other]
        yield Pair((one, other), gallery.pictures.of(some), gallery.pictures.of(shown))


def _direction(pair: Pair, ks: tuple[int, ...]) -> dict[str, Any]:  # JSON
    """Measure one pair; queries without a right picture in the gallery count apart."""
    ranking = look_up(pair.queries, pair.gallery)
    N = len(ranking.first)
    about = {
        "queries_from": pair.names[0],
        "gallery_from": pair.names[1],
        "queries": N,
        "gallery": len(pair.gallery.numbers),
        "queries_without_match": len(pair.queries.numbers) - N,
    }
    if not N:
        logger.warning("no picture of %s has its like in %s", *pair.names)
        return about
    recalls = {f"recall_at_{k}": float((ranking.first < k).double().mean()) for k in ks}
    return {**about, **recalls, "map": float(ranking.average_precision.mean())}
