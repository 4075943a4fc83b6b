import asyncio
import threading
import weakref

import numpy as np
import pytest

from service import batcher as batcher_module
from service.batcher import Batcher
from service.errors import DeadlineExceeded, Overloaded, ServiceError, UndecodableImage
from service.metrics import Metrics
from service.preprocess import Preprocessed
from tests.service.batching import (
    GEOMETRY,
    SOON_S,
    FakeEngine,
    bad_image,
    busy,
    decoded,
    image,
    running,
    sizes,
    submit,
    values,
    wait_until_running,
)


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


def test_results_that_cannot_be_read_are_told_to_their_callers_and_the_runner_lives_on(monkeypatch):
    real = batcher_module.normalize

    def fail_once(array):
        monkeypatch.setattr(batcher_module, "normalize", real)
        raise MemoryError

    async def main():
        async with running(FakeEngine(), num_decoders=1) as (batcher, _):
            monkeypatch.setattr(batcher_module, "normalize", fail_once)
            (failed,) = await submit(batcher, image(2))
            return failed, values(await submit(batcher, image(3)))

    failed, after = asyncio.run(main())
    assert failed.message == "internal error"
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
