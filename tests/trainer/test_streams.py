import http.server
import tarfile
import threading
from contextlib import closing
from functools import partial
from itertools import islice

import pytest
import torch

from tests.trainer.pictures import picture, write_tar
from trainer.augment import global_views
from trainer.data.images import BadImages, ImageRules, TooManyBadImages
from trainer.data.loader import LoaderConfig, ViewMaker, load_streamed
from trainer.data.streams import Shards, ViewStream, read_shard


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(6):
        members = [(f"{shard}-{n}.jpg", picture(10 * shard + n)) for n in range(5)]
        members[2] = (members[2][0], b"damaged")
        write_tar(folder / f"s-{shard}.tar", [*members, ("x.txt", b"text")])
    return tuple(f"pipe:cat {folder}/s-{shard}.tar" for shard in range(6))


def dealt(paths, **changes):
    fields = {"paths": paths, "seed": 2, "batch": 2, "images_per_epoch": 14, "mix": 3}
    return Shards(**(fields | changes))


def take(tmp_path, shards, step, steps, num_workers):
    bad = BadImages(tmp_path / "bad_images.tsv", 0, 0.9)
    bad.load()
    maker = ViewMaker(global_views(16, count=1), seed=4, alter=True)
    stream = ViewStream(shards, maker, ImageRules(), bad, step=step)
    config = LoaderConfig(num_workers=num_workers, prefetch=1, timeout_s=60)
    with closing(load_streamed(stream, shards.batch, config)) as batches:
        return list(islice(batches, steps))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start", [1, 6, 9])
def test_starting_at_a_step_equals_the_tail_of_an_unbroken_run(
    tmp_path, shards, start, num_workers
):
    whole = take(tmp_path, dealt(shards), 0, 16, num_workers)
    tail = take(tmp_path, dealt(shards), start, 16 - start, num_workers)
    assert [batch.names for batch in tail] == [batch.names for batch in whole[start:]]
    assert all(
        torch.equal(a.views[0], b.views[0]) for a, b in zip(tail, whole[start:], strict=True)
    )
    assert "-2.jpg\t" in (tmp_path / "bad_images.tsv").read_text()


def test_readers_share_the_shards_without_overlap(shards):
    names = [
        {image.name for image in islice(dealt(shards).images(0, slot, 3), 8)} for slot in range(3)
    ]
    assert all(len(part) == 8 for part in names)
    assert not names[0] & names[1] | names[1] & names[2] | names[0] & names[2]


def test_epochs_have_their_own_order(shards):
    def names(epoch):
        return [image.name for image in islice(dealt(shards).images(epoch, 0, 1), 10)]

    assert names(0) == names(0)
    assert names(0) != names(1)


def test_a_repeated_image_gets_another_view(tmp_path, shards):
    batches = take(tmp_path, dealt(shards[:1], images_per_epoch=40), 0, 10, 0)
    by_name = {}
    for batch in batches:
        for name, view in zip(batch.names, batch.views[0], strict=True):
            by_name.setdefault(name, []).append(view)
    first, second, *_ = next(iter(by_name.values()))
    assert not torch.equal(first, second)


def test_a_failing_command_is_an_error_in_the_end():
    with pytest.raises(OSError, match=r"cannot read pipe:exit 3"):
        list(read_shard("pipe:exit 3", waits_s=(0.0,)))


def test_a_stream_that_breaks_once_goes_on_where_it_was(tmp_path):
    path = write_tar(tmp_path / "s.tar", [(f"{n}.jpg", picture(n)) for n in range(4)])
    # The first reading ends after 4000 bytes, in the middle of a member.
    command = f"if mkdir {tmp_path}/once; then head -c 4000 {path}; else cat {path}; fi 2>/dev/null"
    images = list(read_shard(f"pipe:{command}", waits_s=(0.0,)))
    assert [data for _, data in images] == [picture(n) for n in range(4)]


def test_compressed_files_and_addresses_are_read(tmp_path):
    members = [(f"{n}.jpg", picture(n)) for n in range(3)]
    path = write_tar(tmp_path / "s.tar.gz", members, mode="w:gz")
    assert [data for _, data in read_shard(str(path))] == [data for _, data in members]
    handler = partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/s.tar.gz"
        assert [data for _, data in read_shard(url)] == [data for _, data in members]
        with pytest.raises(OSError, match="404"):
            list(read_shard(f"{url}x", waits_s=()))
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_shard_without_images_is_refused(tmp_path):
    path = write_tar(tmp_path / "s.tar.gz", [("a.txt", b"text")], mode="w:gz")
    with pytest.raises(ValueError, match="no image in"):
        next(dealt((str(path),)).images(0, 0, 1))


def test_too_many_readers_and_too_short_epochs_are_refused(shards):
    with pytest.raises(ValueError, match="at most 3 workers a rank"):
        dealt(shards, world_size=2).check_workers(4)
    dealt(shards, world_size=2).check_workers(3)
    with pytest.raises(ValueError, match="at least one global batch of 2"):
        dealt(shards, images_per_epoch=1)


class BreakingHandler(http.server.BaseHTTPRequestHandler):
    """Gives a file; of its first answer only the beginning."""

    file, num_bytes, chunked, answers = b"", 0, False, 0

    def log_message(self, *args):
        pass

    def do_GET(self):
        cls = type(self)
        cls.answers += 1
        sent = self.file[: self.num_bytes] if cls.answers == 1 else self.file
        self.send_response(200)
        if self.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%s\r\n" % (len(sent), sent)
            body += b"0\r\n\r\n" if cls.answers > 1 else b"ff\r\nhalf a chunk"
        else:
            self.send_header("Content-Length", str(len(self.file)))
            body = sent
        self.end_headers()
        self.wfile.write(body)

    protocol_version = "HTTP/1.1"
    close_connection = True


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("in_header", [False, True])
def test_an_answer_that_is_cut_is_asked_for_again(tmp_path, chunked, in_header):
    path = write_tar(tmp_path / "s.tar", [(f"{n}.jpg", picture(n)) for n in range(6)])
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2]
    cut = third.offset + 100 if in_header else third.offset_data + 100
    state = {"file": path.read_bytes(), "num_bytes": cut, "chunked": chunked}
    handler = type("Breaking", (BreakingHandler,), state)
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        images = list(read_shard(f"http://127.0.0.1:{server.server_port}/s.tar", waits_s=(0.0,)))
        server.shutdown()
    assert [data for _, data in images] == [picture(n) for n in range(6)]
    assert handler.answers == 2


def test_shards_of_which_no_image_can_be_read_end_the_reading(tmp_path):
    path = write_tar(tmp_path / "s.tar", [(f"{n}.jpg", b"no picture") for n in range(4)])
    with pytest.raises(TooManyBadImages, match=r"none of a reader's images can be read, e\.g\. "):
        take(tmp_path, dealt((f"pipe:cat {path}",), images_per_epoch=40), 0, 1, 0)


@pytest.mark.parametrize("num_good", [1, 5])
def test_few_images_are_read_over_and_over(tmp_path, num_good):
    bad = [(f"bad-{n}.jpg", b"no picture") for n in range(6)]
    good = [(f"{n}.jpg", picture(n)) for n in range(num_good)]
    path = write_tar(tmp_path / "s.tar", [*bad, *good])
    shards = dealt((f"pipe:cat {path}",), images_per_epoch=60, mix=50)
    batches = take(tmp_path, shards, 0, 30, 0)
    assert sum(len(batch.names) for batch in batches) == 60
