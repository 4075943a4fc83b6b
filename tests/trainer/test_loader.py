import multiprocessing
import os
import pickle
import signal
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch

from tests.trainer.pictures import fill_folder
from trainer.augment import global_views, local_views
from trainer.data.images import ImageReader, ImageRules, open_bad_images
from trainer.data.loader import (
    LoaderConfig,
    PixelFinish,
    ViewDataset,
    ViewMaker,
    collate,
    load_batches,
)
from trainer.data.sampler import Key, Order
from trainer.data.sources import open_source

SPECS = global_views(16) + local_views(8, count=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    data = fill_folder(tmp_path_factory.mktemp("data"), 11)
    (data / "cat" / "004.jpg").write_bytes(b"damaged")
    return data


def dataset(folder, run, *, alter=True):
    source, rules = open_source(str(folder)), ImageRules()
    reader = ImageReader(source, rules, open_bad_images(run, source, rules))
    return ViewDataset(reader, ViewMaker(SPECS, seed=5, alter=alter))


def take(data, start, steps, num_workers):
    order = Order(num_images=len(data.reader.source), batch=3, seed=1)
    config = LoaderConfig(num_workers=num_workers, timeout_s=60)
    with closing(load_batches(data, order.batches(start), config)) as batches:
        return list(islice(batches, steps))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.names == other.names
        for view, same in zip(batch.views, other.views, strict=True):
            assert torch.equal(view, same)


def test_a_batch_has_its_views_and_names(folder, tmp_path):
    (batch,) = take(dataset(folder, tmp_path), 0, 1, 0)
    assert [view.shape for view in batch.views] == [(3, 3, 16, 16)] * 2 + [(3, 3, 8, 8)] * 2
    assert {view.dtype for view in batch.views} == {torch.uint8}
    assert batch.parameters.order.shape == (3, 4, 4)
    assert all(name.endswith(".jpg") for name in batch.names)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_starting_at_a_step_equals_the_tail_of_an_unbroken_run(folder, tmp_path, num_workers):
    whole = take(dataset(folder, tmp_path), 0, 8, 0)
    for start in (2, 5):
        tail = take(dataset(folder, tmp_path), start, 8 - start, num_workers)
        assert_same(tail, whole[start:])


def test_epochs_and_images_have_their_own_randomness(folder, tmp_path):
    data = dataset(folder, tmp_path)
    first, other_epoch = data[Key(0, 0)], data[Key(1, 0)]
    assert first.name == other_epoch.name
    assert not torch.equal(first.views[0], other_epoch.views[0])
    assert torch.equal(first.views[0], data[Key(0, 0)].views[0])


def test_a_replacement_is_named(folder, tmp_path):
    data = dataset(folder, tmp_path)
    names = [data.reader.source.name(i) for i in range(11)]
    assert data[Key(0, names.index("cat/004.jpg"))].name == "cat/006.jpg"


def test_loading_takes_nothing_from_the_global_generators(folder, tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)  # the global one is what is watched
    before = torch.get_rng_state(), np.random.get_state()[2]
    take(dataset(folder, tmp_path), 0, 4, 2)
    take(dataset(folder, tmp_path), 0, 4, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[2] == before[1]


def test_altering_on_the_device_equals_altering_in_workers(folder, tmp_path):
    done = take(dataset(folder, tmp_path), 0, 2, 0)
    later = take(dataset(folder, tmp_path, alter=False), 0, 2, 0)
    cpu = torch.device("cpu")
    for a, b in zip(done, later, strict=True):
        ours = PixelFinish(device=cpu, alter=False).to_pixels(a)
        theirs = PixelFinish(device=cpu, alter=True).to_pixels(b)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == torch.float32
            # Sums in another order may move a luminance over a whole grey level.
            assert (one - other).abs().max() <= 2.5 / 255 / 0.224


def test_a_killed_worker_is_an_error_and_not_a_hang(folder, tmp_path):
    data = dataset(folder, tmp_path)
    order = Order(num_images=11, batch=3, seed=1)
    config = LoaderConfig(num_workers=1, prefetch=1, timeout_s=20)
    with closing(load_batches(data, order.batches(0), config)) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        worker.kill()
        with pytest.raises(RuntimeError, match=r"worker.*(killed|exited)"):
            list(islice(batches, 5))


def test_signals_to_the_process_group_leave_workers_alone(folder, tmp_path):
    data = dataset(folder, tmp_path)
    order = Order(num_images=11, batch=3, seed=1)
    config = LoaderConfig(num_workers=1, prefetch=1, timeout_s=20)
    with closing(load_batches(data, order.batches(0), config)) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(worker.pid, number)
        assert len(list(islice(batches, 4))) == 4
        assert worker.is_alive()


def test_closing_ends_the_workers(folder, tmp_path):
    take(dataset(folder, tmp_path), 0, 2, 2)
    assert multiprocessing.active_children() == []


def test_a_terminated_worker_leaves_quietly_in_the_end(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.loader.TERMINATION_GRACE_S", 1)
    data = dataset(folder, tmp_path)
    keys = [[Key(0, 0)]]
    with closing(load_batches(data, keys * 100, LoaderConfig(num_workers=1))) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        worker.terminate()
        worker.join(timeout=20)
        assert worker.exitcode == 0


def test_an_error_in_a_worker_arrives_with_its_message(tmp_path):
    data = fill_folder(tmp_path / "data", 2)
    source, rules = open_source(str(data)), ImageRules()
    for path in data.rglob("*.jpg"):
        path.write_bytes(b"damaged")
    reader = ImageReader(source, rules, open_bad_images(tmp_path, source, rules))
    views = ViewDataset(reader, ViewMaker(SPECS, seed=5, alter=True))
    config = LoaderConfig(num_workers=1, timeout_s=20)
    with (
        closing(load_batches(views, [[Key(0, 0)]], config)) as batches,
        pytest.raises(ValueError, match="none of 2 images can be read"),
    ):
        next(batches)


def test_datasets_travel_to_spawned_workers(folder, tmp_path):
    data = dataset(folder, tmp_path)
    again = pickle.loads(pickle.dumps(data))
    assert_same([collate([again[Key(0, 1)]])], [collate([data[Key(0, 1)]])])


@pytest.mark.parametrize(
    ("field", "value"), [("num_workers", -1), ("prefetch", 0), ("timeout_s", 0.0)]
)
def test_impossible_loaders_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is"):
        LoaderConfig(**{field: value})
