"""The command, from pictures to parquet, and over again."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.bulk.__main__ import main
from service.bulk.embedder import BatchEmbedder
from service.bulk.files import TEMPORARY, replace_file
from service.bulk.listing import Place
from service.bulk.run import embed_shards
from tests.service.calls import post_form
from tests.service.known import floats, good
from tests.service.pictures import jpeg, scene
from tests.service.tiny_model import INFO, C, L, write_tiny_model

ROOT = Path(__file__).parents[3]
GOOD = ["0.png", "1.png", "3.png", "4.png", "deep/a.JPG", "deep/z.png"]


def bulk(source, out, *more):
    return main([str(source), "-o", str(out), "--shard-size", "3", *map(str, more)])


def parts(out):
    return sorted((out / "embeddings").glob("part-*.parquet"))


def vectors(table):
    return np.stack(table["embedding"].to_numpy())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_pictures_become_rows_and_failures_stand_beside_them(pictures, out, capsys, client):
    assert bulk(pictures, out) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{out}/embeddings: 6 pictures in 3 files; 1 failed, see {out}/errors")
    assert [path.name for path in parts(out)] == [f"part-0000{n}.parquet" for n in range(3)]
    table = pq.read_table(out / "embeddings")
    assert table["path"].to_pylist() == GOOD
    assert table["id"].to_pylist() == [0, 1, 3, 4, 5, 6]
    assert set(table["model"].to_pylist()) == {"tiny"}
    files = [(pictures / name).read_bytes() for name in GOOD]
    assert table["sha256"].to_pylist() == [hashlib.sha256(file).hexdigest() for file in files]
    sizes = list(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True))
    assert sizes == [(40, 36), (41, 36), (43, 36), (44, 36), (50, 60), (36, 36)]
    served = good(post_form(client, "/embed", files, encoding_format="base64"))["embeddings"]
    np.testing.assert_allclose(vectors(table), [floats(text) for text in served], atol=1e-6)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), C)
    (error,) = pq.read_table(out / "errors.parquet").to_pylist()
    assert (error["id"], error["path"], error["code"]) == (2, "2.png", "undecodable_image")


def test_a_pipe_is_a_failure_and_not_waited_for(pictures, out):
    os.mkfifo(pictures / "pipe.png")
    assert bulk(pictures, out) == 0
    errors = pq.read_table(out / "errors.parquet").to_pylist()
    assert {error["path"] for error in errors} == {"2.png", "pipe.png"}


def test_each_file_says_what_made_it(pictures, out):
    assert bulk(pictures, out) == 0
    metadata = pq.read_metadata(parts(out)[0]).metadata
    assert metadata[b"model"] == b"tiny"
    assert metadata[b"weights_sha256"] == INFO.weights_sha256.encode()
    assert len(metadata[b"preprocess_sha256"]) == 64
    assert bulk(pictures, out.with_name("padded"), "--fit", "pad") == 0
    padded = pq.read_metadata(parts(out.with_name("padded"))[0]).metadata
    assert padded[b"preprocess_sha256"] != metadata[b"preprocess_sha256"]


def test_regions_come_along_if_wanted(pictures, out):
    assert bulk(pictures, out, "--regions") == 0
    table = pq.read_table(out / "embeddings")
    assert table.schema.field("regions").type == pa.list_(pa.list_(pa.float16(), C), L)


def test_a_file_that_cannot_be_read_is_a_failure_like_any_other(tmp_path, out, pictures):
    paths = [pictures / "0.png", pictures / "missing.png"]
    (tmp_path / "list.txt").write_text("\n".join(map(str, paths)))
    assert bulk(tmp_path / "list.txt", out) == 0
    (error,) = pq.read_table(out / "errors.parquet").to_pylist()
    assert (error["id"], error["code"]) == (1, "unreadable_file")
    assert error["message"] == "No such file or directory"


def test_what_files_lie_on_is_asked_again_and_then_ends_the_run(
    pictures, out, monkeypatch, capsys, caplog
):
    read, broken = Place.read, [2]

    def fail(place):
        if place.name == "1.png" and broken[0]:
            broken[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(place)

    monkeypatch.setattr(Place, "read", fail)
    monkeypatch.setattr("service.bulk.run.WAITS_S", (0.0, 0.0))
    assert bulk(pictures, out) == 0
    assert caplog.text.count("Stale file handle; trying again") == 2
    codes = [error["code"] for error in pq.read_table(out / "errors.parquet").to_pylist()]
    assert "unreadable_file" not in codes
    broken[0] = 99
    assert bulk(pictures, out.with_name("other")) == 1
    assert "Stale file handle; the same command goes on" in capsys.readouterr().err
    broken[0] = 0
    assert bulk(pictures, out.with_name("other")) == 0


def test_a_foreign_file_among_the_shards_is_no_shard(pictures, out):
    (out / "embeddings").mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), out / "embeddings" / "part-00000.parquet")
    assert bulk(pictures, out) == 0
    assert "embedding" in pq.read_table(parts(out)[0]).column_names


def test_a_finished_run_is_not_run_again(pictures, out, capsys):
    assert bulk(pictures, out) == 0
    times = [path.stat().st_mtime_ns for path in parts(out)]
    capsys.readouterr()
    assert bulk(pictures, out) == 0
    assert "done now" not in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in parts(out)] == times


def test_a_run_that_ended_anywhere_goes_on_where_it_was(pictures, out, monkeypatch, capsys):
    def stop_after_the_first(*arguments):
        for step in embed_shards(*arguments):
            yield step
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.bulk.job.embed_shards", stop_after_the_first)
    assert bulk(pictures, out) == 1
    assert "the same command goes on" in capsys.readouterr().err
    assert len(parts(out)) == 1
    first = parts(out)[0].stat().st_mtime_ns
    (out / "embeddings" / f"{TEMPORARY}half").write_bytes(b"PAR1")
    monkeypatch.setattr("service.bulk.job.embed_shards", embed_shards)
    assert bulk(pictures, out) == 0
    assert parts(out)[0].stat().st_mtime_ns == first
    assert pq.read_table(out / "embeddings")["path"].to_pylist() == GOOD
    assert not [*out.rglob(f"{TEMPORARY}*")]


def test_an_engine_that_fails_stops_the_run_and_writes_off_no_picture(
    pictures, out, monkeypatch, capsys
):
    def fail(*_, **__):
        raise MemoryError("no room on the device")

    with monkeypatch.context() as broken:
        broken.setattr("service.engine_onnxruntime.OnnxRuntimeEngine.run", fail)
        assert bulk(pictures, out) == 1
    assert "the engine failed" in capsys.readouterr().err
    assert parts(out) == []
    assert bulk(pictures, out) == 0
    assert pq.read_table(out / "errors.parquet").num_rows == 1


def test_new_pictures_are_added_and_gone_ones_removed(pictures, out):
    assert bulk(pictures, out) == 0
    first = parts(out)[0].stat().st_mtime_ns
    (pictures / "zz.png").write_bytes((pictures / "0.png").read_bytes())
    os.utime(pictures, ns=(1, 1))
    assert bulk(pictures, out) == 0
    assert parts(out)[0].stat().st_mtime_ns == first
    assert pq.read_table(out / "embeddings")["path"].to_pylist() == [
        *GOOD[:4],
        "zz.png",
        *GOOD[4:],
    ]
    for name in ("zz.png", "deep/a.JPG", "deep/z.png"):
        (pictures / name).unlink()
    os.utime(pictures, ns=(2, 2))
    assert bulk(pictures, out) == 0
    assert pq.read_table(out / "embeddings")["path"].to_pylist() == GOOD[:4]


def test_a_shard_that_is_not_ours_is_made_again(pictures, out):
    assert bulk(pictures, out) == 0
    parts(out)[1].write_bytes(b"PAR1 not really")
    pq.write_table(pa.table({"x": [1]}), parts(out)[2])
    assert bulk(pictures, out) == 0
    assert pq.read_table(out / "embeddings")["path"].to_pylist() == GOOD


@pytest.mark.parametrize("more", [["--fit", "pad"], ["--regions"], ["--shard-size", "5"]])
def test_vectors_of_two_kinds_are_not_mixed(pictures, out, capsys, more):
    assert bulk(pictures, out) == 0
    assert bulk(pictures, out, *more) == 2
    assert "give another folder" in capsys.readouterr().err


def test_two_runs_do_not_write_into_one_folder(pictures, out, capsys):
    program = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(600)"
    )
    out.mkdir()
    command = [sys.executable, "-c", program, out / ".lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert bulk(pictures, out) == 2
        other.kill()
    assert "another run is writing" in capsys.readouterr().err
    assert bulk(pictures, out) == 0


def test_what_cannot_be_done_is_said_in_one_line(pictures, tmp_path, out, capsys):
    (tmp_path / "file").write_text("")
    other = write_tiny_model(tmp_path / "other.onnx", None)
    for arguments in (
        [tmp_path / "missing", "-o", out],
        [pictures, "-o", tmp_path / "file"],
        [pictures, "-o", out, "--model", tmp_path / "missing.onnx"],
        [pictures, "-o", out, "--model", other],
    ):
        assert main([*map(str, arguments)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    for wrong in (["--shard-size", "0"], ["--fit", "squint"]):
        with pytest.raises(SystemExit) as caught:
            bulk(pictures, out, *wrong)
        assert caught.value.code == 2


def test_a_run_without_a_single_vector_is_a_fault(tmp_path, out, capsys):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("a.jpg", "b.png"):
        (folder / name).write_bytes(b"no picture")
    assert bulk(folder, out) == 1
    assert "0 pictures in 1 files; 2 failed" in capsys.readouterr().out


def test_an_interrupted_run_says_how_it_goes_on(pictures, out, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(BatchEmbedder, "__call__", interrupted)
    assert bulk(pictures, out) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_missing_packages_are_named(pictures, out, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert bulk(pictures, out) == 2
    assert "pip install 'esvit[bulk]'" in capsys.readouterr().err


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("new, half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        replace_file(path, fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


@pytest.mark.slow
def test_kill_at_any_moment_and_again_gives_every_picture_exactly_once(tmp_path, out):
    folder = tmp_path / "many"
    folder.mkdir()
    data = jpeg(scene(1600, 1200))
    for number in range(600):
        (folder / f"{number:04d}.jpg").write_bytes(data)
    command = [sys.executable, "-m", "service.bulk", folder, "-o", out, "--shard-size", "20"]
    kills = 0
    for wait_for in (1, 7, 15, 24):
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as run:
            while len(parts(out)) < wait_for and run.poll() is None:
                time.sleep(0.002)
            kills += run.poll() is None
            run.send_signal(signal.SIGKILL)
        for path in parts(out):
            assert pq.read_table(path).num_rows == 20
    assert kills >= 2, "the runs were over too soon to be killed"
    subprocess.run(command, cwd=ROOT, check=True)
    table = pq.read_table(out / "embeddings")
    assert table["id"].to_pylist() == list(range(600))
    assert len(set(table["path"].to_pylist())) == 600
    assert not [*out.rglob(f"{TEMPORARY}*")]
