"""Concurrent requests become batches, without a timer.

An image passes two rooms. In the first, as many threads as cores decode and resize. In the second,
as many runners as the engine is fastest with wait for decoded images: a runner that becomes free
takes what is there, up to the engine's batch, at once. So an idle service answers one image without
delay, and a busy one fills its batches while the last ones run; there is no delay to tune. Where a
run has a fixed cost and shares the cores with the decoders (OpenVINO), a runner lets the decoders
finish what they have in hand first: the cores are not idle then, and a burst becomes one batch.

An image whose caller has left or whose deadline has passed is dropped wherever it stands. The
answer to a whole batch crosses to the event loop in one call.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.contract import OUTPUTS, Output
from service.encoding import normalize
from service.errors import DeadlineExceeded, Overloaded, ServiceError
from service.metrics import Metrics
from service.tickets import (
    Answer,
    Arrays,
    Item,
    Job,
    Phase,
    Prepare,
    Result,
    Ticket,
    cut_out,
    forget_where,
)

logger = logging.getLogger(__name__)

POLL_S = 0.0005
"""How often a patient runner looks whether the decoders have finished."""


Trace = Callable[[Collection[Phase]], None]


class Infer(Protocol):
    """What a runner calls: `service.engine.Engine.run`."""

    def __call__(
        self, pixels: NDArray[np.uint8], outputs: Sequence[Output], *, is_alone: bool
    ) -> Arrays:
        """Give the asked outputs for (B, S, S, 3) pixels."""


def untraced(_: Collection[Phase]) -> None:
    """Keep no record of what was done for a request."""


class Sizes(NamedTuple):
    """How wide the rooms are.

    Attributes:
        num_decoders: How many threads decode.
        num_runners: How many threads call the engine.
        max_batch: How many images one call of the engine gets at most.
        max_queue_images: How many images may be accepted and not yet answered.
        patience_s: How long a runner waits for images that are just being decoded.
    """

    num_decoders: int
    num_runners: int
    max_batch: int
    max_queue_images: int
    patience_s: float = 0.0


class Batcher:
    """Runs images through an engine on behalf of many concurrent requests."""

    def __init__(
        self, infer: Infer, sizes: Sizes, metrics: Metrics, trace: Trace = untraced
    ) -> None:
        """Set up; `start` starts the threads.

        Args:
            infer: Runs the engine.
            sizes: How wide the rooms are.
            metrics: Where to count.
            trace: Is told of each answered request's phases, in its own context.
        """
        self._infer = infer
        self._trace = trace
        self._sizes = sizes
        self._metrics = metrics
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        self._is_decoding = [False] * sizes.num_decoders
        self._decoders = [
            _thread(self._decode_forever, number) for number in range(sizes.num_decoders)
        ]
        self._runners = [_thread(self._run_forever, number) for number in range(sizes.num_runners)]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_accepted = 0

    def start(self) -> None:
        """Start the threads; to be called on the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        for thread in (*self._decoders, *self._runners):
            thread.start()
        self._metrics.queued.set_function(lambda: self._jobs.qsize() + self._items.qsize())
        self._metrics.in_flight.set_function(lambda: self._num_accepted)

    def stop(self) -> None:
        """Let the threads finish what was accepted, then end them."""
        for _ in self._decoders:
            self._jobs.put(None)
        for thread in self._decoders:
            thread.join()
        for _ in self._runners:
            self._items.put(None)
        for thread in self._runners:
            thread.join()

    def admit(self, num_images: int) -> None:
        """Refuse what would not fit.

        Raises:
            Overloaded: if too many images are on their way already.
        """
        if self._num_accepted + num_images > self._sizes.max_queue_images:
            limit = self._sizes.max_queue_images
            raise Overloaded(
                f"{self._num_accepted} images are waiting; at most {limit} may", limit=limit
            )

    async def submit(
        self, prepares: Sequence[Prepare], outputs: Sequence[Output], timeout_s: float
    ) -> list[Result]:
        """Decode images and run them through the engine.

        Args:
            prepares: For each image a function that decodes it, called in a worker thread; what it
                raises as `ServiceError` becomes that image's result and no other's.
            outputs: What the engine is asked for.
            timeout_s: Seconds until the answer is given up.

        Returns:
            A result for each image, in order.

        Raises:
            Overloaded: if too many images are on their way already.
            DeadlineExceeded: if the answer is not there in time.
        """
        self.admit(len(prepares))
        loop = asyncio.get_running_loop()
        ticket = Ticket(len(prepares), outputs, time.monotonic() + timeout_s, loop.create_future())
        self._num_accepted += len(prepares)
        for position, prepare in enumerate(prepares):
            self._jobs.put(Job(ticket, position, prepare))
        expiry = loop.call_later(timeout_s, _expire, ticket.future, timeout_s)
        try:
            return await ticket.future
        finally:
            expiry.cancel()
            ticket.is_abandoned = True
            self._trace(ticket.phases)

    def _decode_forever(self, number: int) -> None:
        """Decode jobs until told to stop."""
        while (job := self._jobs.get()) is not None:
            self._is_decoding[number] = True
            self._decode(job)
            self._is_decoding[number] = False

    def _decode(self, job: Job) -> None:
        """Decode one job and hand it to the runners, or answer why not."""
        ticket, position, prepare = job
        if ticket.is_pointless():
            self._answer([(ticket, position, None)])
            return
        started = time.perf_counter()
        try:
            prepared = prepare()
        except ServiceError as error:
            self._answer([(ticket, position, forget_where(error))])
        except Exception:  # a bug in decoding one image must not end the thread
            logger.exception("decoding failed")
            self._answer([(ticket, position, ServiceError("internal error"))])
        else:
            decoded_at = time.perf_counter()
            self._metrics.decode_queue_seconds.observe(started - ticket.accepted_at)
            self._metrics.decode_seconds.observe(decoded_at - started)
            ticket.phases.add(Phase("decode", started, decoded_at))
            self._items.put(Item(ticket, position, prepared, decoded_at))

    def _run_forever(self, _: int) -> None:
        """Run what is there, up to a batch, until told to stop."""
        while (first := self._items.get()) is not None:
            live: list[Item] = []
            gone: list[Answer] = []
            for item in (first, *self._take(self._sizes.max_batch - 1)):
                if item.ticket.is_pointless():
                    gone.append((item.ticket, item.position, None))
                else:
                    live.append(item)
            if gone:
                self._answer(gone)
            if live:
                self._run(live)

    def _take(self, most: int) -> list[Item]:
        """Take what waits, and what the decoders have in hand if they are quick."""
        taken: list[Item] = []
        until = time.monotonic() + self._sizes.patience_s
        while len(taken) < most:
            try:
                item = self._items.get_nowait()
            except Empty:
                if not self._wait_for_decoders(until):
                    break
                continue
            if item is None:  # the end is for `_run_forever` to see
                self._items.put(None)
                break
            taken.append(item)
        return taken

    def _wait_for_decoders(self, until: float) -> bool:
        """Wait a moment if something is being decoded; False if there is nothing to wait for."""
        is_busy = any(self._is_decoding) or not self._jobs.empty()
        if not is_busy or time.monotonic() >= until:
            return False
        time.sleep(POLL_S)
        return True

    def _run(self, batch: list[Item]) -> None:
        """Run one batch and answer it."""
        started = time.perf_counter()
        for item in batch:
            self._metrics.queue_seconds.observe(started - item.decoded_at)
        wanted = frozenset[Output]().union(*(item.ticket.outputs for item in batch))
        outputs = [name for name in OUTPUTS if name in wanted]
        try:
            pixels = np.stack([item.prepared.pixels for item in batch])
            arrays = self._infer(pixels, outputs, is_alone=self._num_accepted == 1)
            ended = time.perf_counter()
            unit = {name: normalize(array) for name, array in arrays.items() if array.ndim == 2}
            answers: list[Answer] = [
                (item.ticket, item.position, cut_out(item, row, arrays, unit))
                for row, item in enumerate(batch)
            ]
        except Exception:  # whatever goes wrong, the callers must be told, and the thread go on
            logger.exception("inference failed")
            self._answer(
                [(item.ticket, item.position, ServiceError("internal error")) for item in batch]
            )
            return
        for item in batch:
            item.ticket.phases.add(Phase("queue", item.decoded_at, started))
            item.ticket.phases.add(Phase("inference", started, ended))
        self._metrics.inference_seconds.observe(ended - started)
        self._metrics.batch_images.observe(len(batch))
        self._answer(answers)

    def _answer(self, answers: list[Answer]) -> None:
        """Carry results over to the event loop, all in one call."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, answers)

    def _settle(self, answers: list[Answer]) -> None:
        """Write results into their tickets, on the event loop."""
        self._num_accepted -= len(answers)
        for ticket, position, result in answers:
            if result is None:
                self._metrics.skipped.inc()
                continue
            ticket.results[position] = result
            ticket.num_missing -= 1
            if ticket.num_missing == 0 and not ticket.future.done():
                ticket.future.set_result(ticket.results)


def _expire(future: asyncio.Future[list[Result]], timeout_s: float) -> None:
    """Give up on a ticket."""
    if not future.done():
        future.set_exception(DeadlineExceeded(f"no answer within {timeout_s:g} s"))


def _thread(target: Callable[[int], None], number: int) -> threading.Thread:
    """Make a thread that does not keep the process alive."""
    name = f"{target.__name__.strip('_')}-{number}"
    return threading.Thread(target=target, args=(number,), name=name, daemon=True)
