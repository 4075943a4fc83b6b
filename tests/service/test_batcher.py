import asyncio
import threading

import numpy as np

from service.tickets import Inferred
from tests.service.batching import (
    GEOMETRY,
    SOON_S,
    FakeEngine,
    busy,
    decoded,
    image,
    running,
    submit,
    values,
)


def test_results_come_in_the_order_of_the_images():
    async def main():
        async with running(FakeEngine(), max_batch=3, num_decoders=4) as (batcher, _):
            return await submit(batcher, *map(image, range(20)))

    results = asyncio.run(main())
    assert values(results) == list(range(20))
    assert all(isinstance(result, Inferred) for result in results)


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
