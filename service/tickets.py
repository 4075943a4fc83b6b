"""What travels through the batcher: a request's ticket, its images on the way, their results."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract import Output
from service.errors import DeadlineExceeded, ServiceError
from service.preprocess import Preprocessed

Arrays = dict[Output, NDArray[np.float32]]
Prepare = Callable[[], Preprocessed]


class Inferred(NamedTuple):
    """What became of one image.

    Attributes:
        arrays: What the engine gave, without the batch axis.
        unit: Those of them that are one vector an image, divided by their L2 norm. Made here for a
            whole batch: on the event loop NumPy would let go of the interpreter lock, and every
            call would stand in line behind the decoders to get it back.
        prepared: What the arrays were made from.
    """

    arrays: Arrays
    unit: Arrays
    prepared: Preprocessed


Result = Inferred | ServiceError


class Phase(NamedTuple):
    """What was done for a ticket from when to when, by `time.perf_counter`.

    Images that shared a run share its phase.
    """

    name: str
    started: float
    ended: float


class Ticket:
    """One request's images on their way; `future` is done when the last one has its result."""

    def __init__(
        self,
        num_images: int,
        outputs: Sequence[Output],
        deadline: float,
        future: asyncio.Future[list[Result]],
    ) -> None:
        self.accepted_at = time.perf_counter()
        self.phases: set[Phase] = set()
        self.outputs = frozenset(outputs)
        self.deadline = deadline
        self.future = future
        self.is_abandoned = False
        self.num_missing = num_images
        self.results: list[Result] = [DeadlineExceeded("not answered in time")] * num_images

    def is_pointless(self) -> bool:
        """Tell whether nobody waits for the answer any more."""
        return self.is_abandoned or time.monotonic() > self.deadline


class Job(NamedTuple):
    """One image of a ticket, not yet decoded."""

    ticket: Ticket
    position: int
    prepare: Prepare


class Item(NamedTuple):
    """One image of a ticket, decoded and waiting for a runner."""

    ticket: Ticket
    position: int
    prepared: Preprocessed
    decoded_at: float


Answer = tuple[Ticket, int, Result | None]
"""Ticket, position and result of one image; None where it was dropped."""


def cut_out(item: Item, row: int, arrays: Arrays, unit: Arrays) -> Inferred:
    """Cut one image's arrays out of the batch's."""
    wanted = item.ticket.outputs
    return Inferred(
        {name: array[row] for name, array in arrays.items() if name in wanted},
        {name: array[row] for name, array in unit.items() if name in wanted},
        item.prepared,
    )


def forget_where(error: ServiceError) -> ServiceError:
    """Take from an error, which waits for its call's end, the frames that hold the whole image."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
