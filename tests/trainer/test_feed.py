import contextlib
import shlex
from dataclasses import replace

import pytest
import torch

from tests.trainer.pictures import fill_folder, picture, write_tar
from trainer.config import DataConfig
from trainer.feed import open_feed
from trainer.recipes import smoke


def config(tmp_path, path, **data):
    out = tmp_path / "run"
    out.mkdir(exist_ok=True)
    return replace(smoke("", out), data=DataConfig(path=str(path), **data))


def take(feed, step, count):
    with contextlib.closing(feed.batches(step)) as batches:
        return [next(batches) for _ in range(count)]


def shards(tmp_path, *, compressed):
    suffix, mode = (".tar.gz", "w:gz") if compressed else (".tar", "w")
    for shard in range(2):
        members = [(f"{shard}-{n}.jpg", picture(10 * shard + n)) for n in range(6)]
        write_tar(tmp_path / f"shard-{shard}{suffix}", members, mode)
    return tmp_path / f"shard-*{suffix}"


@pytest.mark.parametrize("kind", ["folder", "tar", "stream", "pipe"])
def test_any_source_goes_on_from_any_step(kind, tmp_path):
    if kind == "folder":
        settings = config(tmp_path, fill_folder(tmp_path / "images", 12))
    elif kind == "tar":
        settings = config(tmp_path, shards(tmp_path, compressed=False))
    elif kind == "stream":
        settings = config(tmp_path, shards(tmp_path, compressed=True), images_per_epoch=12, mix=3)
    else:
        shards(tmp_path, compressed=False)
        command = f"pipe:cat {shlex.quote(str(tmp_path))}/shard-0.tar"
        settings = config(tmp_path, command, images_per_epoch=12, mix=3)
    feed = open_feed(settings)
    assert (feed.num_images, feed.steps_per_epoch) == (12, 3)
    assert (feed.source is None) == (kind in ("stream", "pipe"))
    from_start, later = take(feed, 0, 5), take(feed, 3, 2)
    for expected, batch in zip(from_start[3:], later, strict=True):
        assert batch.names == expected.names
        pairs = zip(batch.views, expected.views, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_views_are_those_of_the_crops(tmp_path):
    feed = open_feed(config(tmp_path, fill_folder(tmp_path / "images", 5)))
    (batch,) = take(feed, 0, 1)
    assert [tuple(view.shape) for view in batch.views] == [(4, 3, 64, 64)] * 2 + [
        (4, 3, 32, 32)
    ] * 2


def test_length_is_refused_where_the_source_knows_it(tmp_path):
    folder = fill_folder(tmp_path / "images", 5)
    with pytest.raises(ValueError, match="images_per_epoch is for streams"):
        open_feed(config(tmp_path, folder, images_per_epoch=5))


def test_more_readers_than_shards_are_refused(tmp_path):
    settings = config(tmp_path, shards(tmp_path, compressed=True), images_per_epoch=12)
    settings = replace(settings, loader=replace(settings.loader, num_workers=3))
    with pytest.raises(ValueError, match="2 shards for 3 readers"):
        open_feed(settings)
