from itertools import islice

import pytest
import torch

from trainer.data.sampler import Order, Position, permutation


def take(order, position, steps):
    return list(islice(order.batches(position), steps))


def test_an_epoch_shows_every_image_once():
    order = Order(num_images=12, batch=4, seed=3)
    batches = take(order, Position(0, 0), 3)
    assert sorted(key.image for batch in batches for key in batch) == list(range(12))
    assert {key.epoch for batch in batches for key in batch} == {0}


def test_epochs_and_seeds_differ_and_repeat():
    assert torch.equal(permutation(100, 1, 5), permutation(100, 1, 5))
    assert not torch.equal(permutation(100, 1, 5), permutation(100, 1, 6))
    assert not torch.equal(permutation(100, 1, 5), permutation(100, 2, 5))


def test_the_order_is_this_one_for_ever():
    # A stored checkpoint counts on it: a change here changes what a resumed run sees.
    assert permutation(10, 0, 0).tolist() == [4, 8, 2, 7, 0, 1, 5, 3, 6, 9]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("start", [0, 1, 4, 5, 11])
def test_starting_at_a_step_gives_the_tail_of_the_whole(start, drop_last):
    order = Order(num_images=22, batch=4, seed=0, drop_last=drop_last)
    whole = take(order, Position(0, 0), 15)
    assert take(order, order.at(start), 15 - start) == whole[start:]


def test_position_after_each_step_is_the_position_of_the_next():
    order = Order(num_images=22, batch=4, seed=0)
    position = Position(0, 0)
    for step in range(13):
        assert position == order.at(step)
        position = order.after(position)


def test_ranks_share_out_the_batch_of_one_process():
    alone = Order(num_images=50, batch=8, seed=1)
    ranks = [Order(num_images=50, batch=2, seed=1, rank=r, world_size=4) for r in range(4)]
    for step in zip(*(take(o, Position(0, 0), 14) for o in [alone, *ranks]), strict=True):
        assert step[0] == [key for part in step[1:] for key in part]


def test_another_world_size_goes_on_with_what_was_left():
    before = Order(num_images=40, batch=5, seed=1)
    position = Position(0, 0)
    for _ in range(3):
        position = before.after(position)
    seen = [key.image for batch in take(before, Position(0, 0), 3) for key in batch]
    after = [Order(num_images=40, batch=4, seed=1, rank=r, world_size=2) for r in range(2)]
    assert after[0].steps_left(position) == 3
    rest = [key.image for o in after for batch in take(o, position, 3) for key in batch]
    assert sorted(seen + rest) == sorted(permutation(40, 1, 0)[:39].tolist())
    assert not set(seen) & set(rest)


def test_a_position_without_a_step_left_goes_on_with_the_next_epoch():
    order = Order(num_images=40, batch=16, seed=1)
    ((key, *_),) = take(order, Position(2, 30), 1)
    assert key.epoch == 3
    assert order.after(Position(2, 30)) == (3, 16)


def test_drop_last_leaves_out_and_otherwise_fills_from_the_beginning():
    assert Order(num_images=10, batch=4, seed=0).steps_per_epoch == 2
    order = Order(num_images=10, batch=4, seed=0, drop_last=False)
    assert order.steps_per_epoch == 3
    images = permutation(10, 0, 0).tolist()
    last = [key.image for key in take(order, Position(0, 0), 3)[2]]
    assert last == images[8:] + images[:2]


def test_blocks_stay_near_each_other():
    order = permutation(1000, 0, 0, block_size=10)
    assert sorted(order.tolist()) == list(range(1000))
    windows = order[:960].view(-1, 80)
    assert all(len((window // 10).unique()) == 8 for window in windows)
    assert not torch.equal(order[:80] // 10, order[:80].sort().values // 10)
    assert not torch.equal(order, permutation(1000, 0, 1, block_size=10))


def test_blocks_that_do_not_divide_the_images_lose_none():
    assert sorted(permutation(103, 0, 0, block_size=10).tolist()) == list(range(103))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch", 0, "batch is 0"),
        ("batch", 11, "10 images do not fill one global batch of 11"),
        ("rank", 1, "rank is 1"),
        ("seed", -1, "seed is -1"),
    ],
)
def test_impossible_orders_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Order(**({"num_images": 10, "batch": 2, "seed": 0} | {field: value}))


@pytest.mark.slow
def test_ten_million_images_take_little():
    import time

    start = time.perf_counter()
    order = Order(num_images=10_000_000, batch=512, seed=0)
    (batch,) = take(order, order.at(12_345), 1)
    assert len(batch) == 512
    assert time.perf_counter() - start < 10
