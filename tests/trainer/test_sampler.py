from itertools import islice

import pytest
import torch

from trainer.data.sampler import Order, permutation


def take(order, start, count):
    return list(islice(order.batches(start), count))


def test_an_epoch_shows_every_image_once():
    order = Order(num_images=12, batch=4, seed=3)
    batches = take(order, 0, 3)
    assert sorted(key.image for batch in batches for key in batch) == list(range(12))
    assert {key.epoch for batch in batches for key in batch} == {0}


def test_epochs_and_seeds_differ_and_repeat():
    assert torch.equal(permutation(100, 1, 5), permutation(100, 1, 5))
    assert not torch.equal(permutation(100, 1, 5), permutation(100, 1, 6))
    assert not torch.equal(permutation(100, 1, 5), permutation(100, 2, 5))


def test_the_order_is_this_one_for_ever():
    # A stored checkpoint counts on it: a change here changes what a resumed run sees.
    assert permutation(10, 0, 0).tolist() == [4, 8, 2, 7, 0, 1, 5, 3, 6, 9]


@pytest.mark.parametrize("start", [0, 1, 4, 5, 11])
def test_starting_at_a_step_gives_the_tail_of_the_whole(start):
    order = Order(num_images=22, batch=4, seed=0)
    whole = take(order, 0, 15)
    assert take(order, start, 15 - start) == whole[start:]


def test_ranks_share_out_the_batch_of_one_process():
    alone = Order(num_images=50, batch=8, seed=1)
    ranks = [Order(num_images=50, batch=2, seed=1, rank=r, world_size=4) for r in range(4)]
    for step in zip(*(take(o, 0, 14) for o in [alone, *ranks]), strict=True):
        assert step[0] == [key for part in step[1:] for key in part]


def test_what_fills_no_batch_is_left_out_of_an_epoch():
    order = Order(num_images=10, batch=4, seed=0)
    assert order.steps_per_epoch == 2
    first, second, third = take(order, 0, 3)
    assert [key.image for key in first + second] == permutation(10, 0, 0).tolist()[:8]
    assert [key.image for key in third] == permutation(10, 0, 1).tolist()[:4]
    assert {key.epoch for key in third} == {1}


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
