import asyncio
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.batcher import Batcher, Sizes
from service.errors import DeadlineExceeded, Overloaded, ServiceError, UndecodableImage
from service.metrics import Metrics
from service.preprocess import Geometry, Preprocessed
from service.tickets import Inferred

GEOMETRY = Geometry(2, 2, 0.0, 0.0, 1.0, 1.0)
SOON_S = 20.0
"""Longer than anything here takes; only a failing test waits so long."""


class FakeEngine:
    """Gives each picture's first value; can be held, and notes what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[str]]] = []
        self.is_running = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, pixels, outputs: Sequence[str], *, is_alone: bool):
        values = pixels[:, 0, 0, 0].astype(np.float32)
        self.calls.append((pixels[:, 0, 0, 0].tolist(), list(outputs)))
        self.is_running.release()
        assert self.may_go_on.wait(SOON_S)
        if 255 in values:
            raise RuntimeError("the engine is out of order")
        vector = np.stack([values, 2 * values], axis=1)
        arrays = {"embedding": vector, "regions": vector[:, None]}
        return {name: arrays[name] for name in outputs}


def image(value: int) -> Callable[[], Preprocessed]:
    return lambda: Preprocessed(np.full((2, 2, 3), value, np.uint8), GEOMETRY)


def bad_image() -> Preprocessed:
    raise UndecodableImage("not an image")


def values(results) -> list[float]:
    return [float(result.arrays["embedding"][0]) for result in results]


def sizes(**changes) -> Sizes:
    return Sizes(num_decoders=2, num_runners=1, max_batch=8, max_queue_images=64)._replace(
        **changes
    )


@asynccontextmanager
async def running(engine, **changes):
    metrics = Metrics()
    batcher = Batcher(engine, sizes(**changes), metrics)
    batcher.start()
    try:
        yield batcher, metrics.registry.get_sample_value
    finally:
        if isinstance(engine, FakeEngine):
            engine.may_go_on.set()
        await asyncio.to_thread(batcher.stop)


def submit(batcher, *prepares, outputs=("embedding",), timeout_s=SOON_S):
    return asyncio.create_task(batcher.submit(prepares, outputs, timeout_s))


async def wait_until_running(engine: FakeEngine) -> None:
    """Wait until the engine has begun one more run."""
    assert await asyncio.to_thread(engine.is_running.acquire, timeout=SOON_S)


@asynccontextmanager
async def busy(engine: FakeEngine, batcher: Batcher):
    """Hold the engine in a run of image 1 while the block runs."""
    engine.may_go_on.clear()
    first = submit(batcher, image(1))
    await wait_until_running(engine)
    yield first
    engine.may_go_on.set()


async def decoded(sample, count: int) -> None:
    """Wait until so many images are decoded and wait for the engine."""
    async with asyncio.timeout(SOON_S):
        while sample("esvit_queue_images") != count:
            await asyncio.sleep(0)  # the decoders are threads: let them, and look again


def test_results_come_in_the_order_of_the_images():
    async def main():
        async with running(FakeEngine(), max_batch=3, num_decoders=4) as (batcher, _):
            return await submit(batcher, *map(image, range(20)))

    results = asyncio.run(main())
    assert values(results) == list(range(20))
    assert all(isinstance(result, Inferred) for result in results)


def test_a_refused_image_is_let_go_of_though_its_call_still_waits():
    class Pixels:
        """Stands for hundreds of megabytes."""

    seen = []

    def damaged():
        pixels = Pixels()
        seen.append(weakref.ref(pixels))
        try:
            raise OSError("unreadable")
        except OSError as error:
            raise UndecodableImage("not an image") from error

    async def main():
        engine = FakeEngine()
        async with running(engine) as (batcher, sample), busy(engine, batcher):
            waiting = submit(batcher, damaged, image(2))
            await decoded(sample, 1)
            async with asyncio.timeout(SOON_S):
                while not seen or seen[0]() is not None:
                    await asyncio.sleep(0)
            assert not waiting.done()
            engine.may_go_on.set()
            return await waiting

    refusal, answer = asyncio.run(main())
    assert isinstance(refusal, UndecodableImage)
    assert values([answer]) == [2]


def test_every_one_of_many_callers_gets_its_own_results():
    async def main():
        async with running(FakeEngine(), num_runners=3, max_queue_images=250) as (batcher, sample):
            tasks = [submit(batcher, image(n), image(n + 100)) for n in range(100)]
            results = [values(result) for result in await asyncio.gather(*tasks)]
            assert sample("esvit_in_flight_images") == 0
            return results

    assert asyncio.run(main()) == [[n, n + 100] for n in range(100)]


def test_vectors_come_normalized_too():
    async def main():
        async with running(FakeEngine()) as (batcher, _):
            return await submit(batcher, image(3), outputs=("embedding", "regions"))

    (result,) = asyncio.run(main())
    np.testing.assert_allclose(result.unit["embedding"], np.array([1, 2]) / 5**0.5, rtol=1e-6)
    assert set(result.unit) == {"embedding"}
    assert result.prepared.geometry == GEOMETRY


def test_an_idle_service_runs_one_image_at_once():
    async def main():
        engine = FakeEngine()
        async with running(engine) as (batcher, _):
            await submit(batcher, image(1))
            await submit(batcher, image(2))
        return engine.calls

    assert asyncio.run(main()) == [([1], ["embedding"]), ([2], ["embedding"])]


def test_what_waits_while_the_engine_runs_becomes_one_batch():
    async def main():
        engine = FakeEngine()
        async with running(engine, num_decoders=1) as (batcher, sample):
            async with busy(engine, batcher) as first:
                tasks = [submit(batcher, image(n)) for n in (2, 3, 4)]
                await decoded(sample, 3)
            await asyncio.gather(first, *tasks)
            assert sample("esvit_batch_images_count") == 2
            assert sample("esvit_batch_images_sum") == 4
        return engine.calls

    assert asyncio.run(main())[1] == ([2, 3, 4], ["embedding"])


def test_a_large_request_is_split_by_max_batch():
    async def main():
        engine = FakeEngine()
        async with running(engine, num_decoders=1, max_batch=4) as (batcher, sample):
            async with busy(engine, batcher) as first:
                task = submit(batcher, *map(image, range(10)))
                await decoded(sample, 10)
            await first
            assert values(await task) == list(range(10))
        return engine.calls

    assert [len(pixels) for pixels, _ in asyncio.run(main())] == [1, 4, 4, 2]


def test_a_batch_is_run_for_the_union_of_outputs_and_each_gets_its_own():
    async def main():
        engine = FakeEngine()
        async with running(engine, num_decoders=1) as (batcher, sample):
            async with busy(engine, batcher) as first:
                tasks = [
                    submit(batcher, image(2), outputs=("regions",)),
                    submit(batcher, image(3), outputs=("embedding",)),
                ]
                await decoded(sample, 2)
            await first
            return engine.calls, [set((await task)[0].arrays) for task in tasks]

    calls, given = asyncio.run(main())
    assert calls[1] == ([2, 3], ["embedding", "regions"])
    assert given == [{"regions"}, {"embedding"}]


def test_a_full_queue_refuses_at_once_and_recovers():
    async def main():
        engine = FakeEngine()
        async with running(engine, max_queue_images=3) as (batcher, sample):
            async with busy(engine, batcher) as first:
                second = submit(batcher, image(2), image(3))
                await asyncio.sleep(0)  # lets it be accepted
                assert sample("esvit_in_flight_images") == 3
                with pytest.raises(Overloaded, match="3 images are waiting; at most 3") as caught:
                    await submit(batcher, image(4))
            await asyncio.gather(first, second)
            assert values(await submit(batcher, image(5), image(6), image(7))) == [5, 6, 7]
        return caught.value

    error = asyncio.run(main())
    assert (error.status, error.code, error.limit, error.retry_after_s) == (429, "overloaded", 3, 1)


def test_a_request_larger_than_the_queue_is_refused():
    async def main():
        async with running(FakeEngine(), max_queue_images=2) as (batcher, _):
            with pytest.raises(Overloaded):
                await submit(batcher, image(1), image(2), image(3))
            assert values(await submit(batcher, image(1), image(2))) == [1, 2]

    asyncio.run(main())


def test_an_answer_that_does_not_come_in_time_is_given_up_and_its_work_dropped():
    async def main():
        engine = FakeEngine()
        async with running(engine) as (batcher, sample):
            async with busy(engine, batcher) as first:
                with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.01 s"):
                    await submit(batcher, image(2), timeout_s=0.01)
            await first
            await submit(batcher, image(3))
            assert sample("esvit_skipped_images_total") == 1
            assert sample("esvit_in_flight_images") == 0
        return [pixels for pixels, _ in engine.calls]

    assert asyncio.run(main()) == [[1], [3]]


def test_a_call_given_up_while_the_engine_runs_harms_nobody():
    async def main():
        engine = FakeEngine()
        async with running(engine) as (batcher, sample):
            engine.may_go_on.clear()
            with pytest.raises(DeadlineExceeded):
                await submit(batcher, image(1), timeout_s=0.01)
            engine.may_go_on.set()
            assert values(await submit(batcher, image(2))) == [2]
            assert sample("esvit_in_flight_images") == 0

    asyncio.run(main())


def test_work_of_departed_clients_is_neither_decoded_nor_run():
    async def main():
        engine, was_decoded = FakeEngine(), []

        def note(value):
            was_decoded.append(value)
            return image(value)()

        async with running(engine, num_decoders=1) as (batcher, sample):
            async with busy(engine, batcher) as first:
                has_begun, may_end = threading.Event(), threading.Event()

                def slow():
                    has_begun.set()
                    assert may_end.wait(SOON_S)
                    return image(2)()

                slow_one = submit(batcher, slow)
                assert await asyncio.to_thread(has_begun.wait, SOON_S)
                departed = submit(batcher, lambda: note(3), lambda: note(4))
                await asyncio.sleep(0)
                departed.cancel()
                slow_one.cancel()
                await asyncio.gather(departed, slow_one, return_exceptions=True)
                may_end.set()
            await first
            assert values(await submit(batcher, lambda: note(5))) == [5]
            assert sample("esvit_skipped_images_total") == 3
            assert sample("esvit_in_flight_images") == 0
        return was_decoded, [pixels for pixels, _ in engine.calls]

    assert asyncio.run(main()) == ([5], [[1], [5]])


def test_a_bad_image_leaves_its_neighbours_alone():
    async def main():
        async with running(FakeEngine()) as (batcher, _):
            return await submit(batcher, image(1), bad_image, image(3))

    first, second, third = asyncio.run(main())
    assert values([first, third]) == [1, 3]
    assert isinstance(second, UndecodableImage)


def test_only_bad_images_are_answered_without_the_engine():
    async def main():
        engine = FakeEngine()
        async with running(engine) as (batcher, _):
            return await submit(batcher, bad_image, bad_image), engine.calls

    results, calls = asyncio.run(main())
    assert [result.code for result in results] == ["undecodable_image"] * 2
    assert calls == []


def test_a_bug_in_decoding_concerns_that_image_only_and_the_decoder_lives_on():
    async def main():
        async with running(FakeEngine(), num_decoders=1) as (batcher, _):
            return await submit(batcher, lambda: 1 / 0, image(2))

    bug, good = asyncio.run(main())
    assert (bug.status, bug.code, bug.message) == (500, "internal", "internal error")
    assert values([good]) == [2]


def test_a_failing_engine_is_told_to_all_its_callers_and_the_batcher_lives_on():
    async def main():
        engine = FakeEngine()
        async with running(engine, num_decoders=1) as (batcher, sample):
            async with busy(engine, batcher) as first:
                tasks = [submit(batcher, image(n)) for n in (2, 255, 4)]
                await decoded(sample, 3)
            results = [(await task)[0] for task in (first, *tasks)]
            after = await submit(batcher, image(5))
        return results, values(after)

    (fine, *failed), after = asyncio.run(main())
    assert values([fine]) == [1]
    assert [type(result) for result in failed] == [ServiceError] * 3
    assert {result.message for result in failed} == {"internal error"}
    assert after == [5]


def test_pictures_of_different_shapes_fail_without_ending_the_runner():
    def other_shape():
        return Preprocessed(np.zeros((3, 3, 3), np.uint8), GEOMETRY)

    async def main():
        engine = FakeEngine()
        async with running(engine, num_decoders=1) as (batcher, sample):
            async with busy(engine, batcher) as first:
                task = submit(batcher, image(2), other_shape)
                await decoded(sample, 2)
            await first
            return await task, values(await submit(batcher, image(3)))

    failed, after = asyncio.run(main())
    assert [result.status for result in failed] == [500, 500]
    assert after == [3]


def test_stop_finishes_what_was_accepted():
    async def main():
        engine = FakeEngine()
        metrics = Metrics()
        batcher = Batcher(engine, sizes(num_runners=2, max_batch=2), metrics)
        batcher.start()
        async with busy(engine, batcher) as first:
            rest = submit(batcher, *map(image, range(2, 9)))
            await asyncio.sleep(0)
            stopping = asyncio.create_task(asyncio.to_thread(batcher.stop))
        assert values(await first) == [1]
        assert values(await rest) == list(range(2, 9))
        await stopping

    asyncio.run(main())


def test_a_runner_that_finds_the_end_behind_its_images_still_runs_them():
    async def main():
        engine = FakeEngine()
        batcher = Batcher(engine, sizes(), Metrics())
        batcher.start()
        async with busy(engine, batcher) as first:
            rest = submit(batcher, image(2), image(3))
            await asyncio.sleep(0)
            stopping = asyncio.create_task(asyncio.to_thread(batcher.stop))
            for decoder in batcher._decoders:
                await asyncio.to_thread(decoder.join)  # the end is now in the runner's queue
        assert values(await first) == [1]
        assert values(await rest) == [2, 3]
        await stopping
        return engine.calls

    assert [sorted(pixels) for pixels, _ in asyncio.run(main())] == [[1], [2, 3]]


def test_answers_after_the_loop_has_closed_are_dropped():
    engine = FakeEngine()
    batcher = Batcher(engine, sizes(), Metrics())

    async def leave_in_the_middle():
        batcher.start()
        engine.may_go_on.clear()
        task = submit(batcher, image(1))
        await wait_until_running(engine)
        task.cancel()

    asyncio.run(leave_in_the_middle())
    engine.may_go_on.set()
    batcher.stop()  # returns: the runner survived the closed loop


def test_a_patient_runner_waits_for_what_is_being_decoded():
    async def main():
        engine, has_begun, may_end = FakeEngine(), threading.Event(), threading.Event()

        def slow():
            has_begun.set()
            assert may_end.wait(SOON_S)
            return image(2)()

        async with running(engine, patience_s=SOON_S) as (batcher, sample):
            slow_one = submit(batcher, slow)
            assert await asyncio.to_thread(has_begun.wait, SOON_S)
            quick = submit(batcher, image(1))
            async with asyncio.timeout(SOON_S):
                while sample("esvit_decode_seconds_count") != 1:
                    await asyncio.sleep(0)
            may_end.set()
            await asyncio.gather(slow_one, quick)
        return engine.calls

    assert asyncio.run(main()) == [([1, 2], ["embedding"])]


def test_patience_ends():
    async def main():
        engine, may_end = FakeEngine(), threading.Event()

        def slow():
            assert may_end.wait(SOON_S)
            return image(2)()

        async with running(engine, patience_s=0.002) as (batcher, _):
            slow_one = submit(batcher, slow)
            await submit(batcher, image(1))  # is answered though the other still decodes
            may_end.set()
            await slow_one
        return engine.calls

    assert [pixels for pixels, _ in asyncio.run(main())] == [[1], [2]]


def test_a_patient_runner_waits_for_nothing_where_nothing_is_decoded():
    async def main():
        async with running(FakeEngine(), patience_s=SOON_S) as (batcher, _):
            async with asyncio.timeout(SOON_S / 2):
                return values(await submit(batcher, image(1)))

    assert asyncio.run(main()) == [1]
