import json
import multiprocessing
import os
import random
import resource
import subprocess

import pytest
import torch

from trainer import checkpoint
from trainer.checkpoint import (
    CheckpointNotWritten,
    KeepRule,
    check_space,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    remove_leftovers,
    remove_old,
    save_checkpoint,
    set_newer_aside,
)


def tensors(value, size=1000):
    return {"student/w": torch.full((size,), float(value)), "center": torch.tensor([value])}


def save(folder, step):
    return save_checkpoint(folder, step, tensors(step), {"epoch": step // 10, "note": "ü"})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    state = {"epoch": 3, "losses": [0.1, None], "nested": {"a": "b"}}
    parts = {
        "a": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).T,
        "half": torch.randn(5).bfloat16(),
        "scalar": torch.tensor(7),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0, dtype=torch.float64),
    }
    path = save_checkpoint(tmp_path, 12, parts, state)
    found = load_latest(tmp_path)
    assert (found.step, found.state, found.path) == (12, state, path)
    assert found.tensors.keys() == parts.keys()
    for name, tensor in parts.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert (tmp_path / "latest").read_text() == "step-000000012.safetensors\n"


def test_tensors_that_share_memory_are_saved_each(tmp_path):
    whole = torch.arange(6.0)
    save_checkpoint(tmp_path, 1, {"a": whole, "same": whole, "part": whole[2:4]}, {})
    found = load_latest(tmp_path).tensors
    assert torch.equal(found["same"], whole)
    assert torch.equal(found["part"], whole[2:4])


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert load_latest(tmp_path) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "seal"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, caplog, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-100])
    elif damage == "flipped":
        data[-50] ^= 1
        path.write_bytes(data)
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        path.with_suffix(".json").write_text("{")
    found = load_latest(tmp_path)
    assert found.step == 1
    assert torch.equal(found.tensors["center"], torch.tensor([1]))
    assert "step-000000002.safetensors is passed over" in caplog.text


def test_only_damaged_checkpoints_stop_the_run(tmp_path):
    for step in (1, 2):
        save(tmp_path, step).write_bytes(b"")
    with pytest.raises(ValueError, match=r"all 2 checkpoints in .* are damaged"):
        load_latest(tmp_path)


def test_a_damaged_checkpoint_is_written_anew_and_a_whole_one_left(tmp_path):
    path = save(tmp_path, 1)
    path.write_bytes(b"")
    save(tmp_path, 1)
    assert load_latest(tmp_path).step == 1
    before = path.stat().st_mtime_ns
    save(tmp_path, 1)
    assert path.stat().st_mtime_ns == before


def test_last_n_and_every_m_are_kept(tmp_path):
    for step in range(1, 8):
        save(tmp_path, step)
    removed = remove_old(tmp_path, KeepRule(last=2, every=3))
    assert [path.name for path in removed] == [f"step-{s:09}.safetensors" for s in (1, 2, 4, 5)]
    kept = [load_checkpoint(path).step for path in list_checkpoints(tmp_path)]
    assert kept == [3, 6, 7]
    assert len(names(tmp_path)) == 3 * 2 + 1


def test_damaged_newer_checkpoints_take_no_good_ones_place(tmp_path, caplog):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    for step in (3, 4):
        (tmp_path / f"step-{step:09}.safetensors").write_bytes(b"damaged")
    found = load_latest(tmp_path)
    assert found.step == 2
    set_newer_aside(tmp_path, found.path)
    assert caplog.text.count("is set aside as") == 2
    save(tmp_path, 3)  # the same steps are done again
    remove_old(tmp_path, KeepRule(last=2))
    assert [load_checkpoint(path).step for path in list_checkpoints(tmp_path)] == [2, 3]
    assert load_latest(tmp_path).step == 3


def test_a_checkpoint_that_cannot_be_sealed_leaves_nothing(tmp_path, monkeypatch):
    def fill_up(path, text):
        raise OSError(28, "No space left on device")

    save(tmp_path, 1)
    before = names(tmp_path)
    monkeypatch.setattr(checkpoint, "write_text", fill_up)
    with pytest.raises(CheckpointNotWritten, match="No space left"):
        save(tmp_path, 2)
    assert names(tmp_path) == before


def test_leftovers_of_a_killed_run_are_ignored_and_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step-000000002.safetensors").write_bytes(b"half")
    (tmp_path / "step-000000003.safetensors.tmp-0123").write_bytes(b"less")
    assert load_latest(tmp_path).step == 1
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["latest", "step-000000001.json", "step-000000001.safetensors"]


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load_checkpoint(tmp_path / "x")
    checkpoint.save_file({"a": torch.zeros(1)}, tmp_path / "y", {"format": "99"})
    with pytest.raises(ValueError, match="format 99, expected 1"):
        load_checkpoint(tmp_path / "y")


def test_too_little_room_is_said_before_the_run(tmp_path):
    check_space(tmp_path, 1000, checkpoints=3)
    with pytest.raises(CheckpointNotWritten, match="3 checkpoints take 3,377,699,721 MB"):
        check_space(tmp_path, 2**50, checkpoints=3)


def test_impossible_rules_are_refused():
    with pytest.raises(ValueError, match="last is 1"):
        KeepRule(last=1)
    with pytest.raises(ValueError, match="every is -1"):
        KeepRule(every=-1)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mount.returncode != 0:
        pytest.skip(f"NOT TESTED: a full disk, mounting is not permitted: {mount.stderr}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(small_disk):
    save(small_disk, 1)
    before = names(small_disk)
    with pytest.raises(CheckpointNotWritten, match="step-000000002"):
        save_checkpoint(small_disk, 2, tensors(2, size=10**6), {})
    assert names(small_disk) == before
    assert load_latest(small_disk).step == 1
    save(small_disk, 3)
    assert load_latest(small_disk).step == 3


def test_a_file_size_limit_keeps_the_last_good_checkpoint(tmp_path):
    def write_under_a_limit():
        torch.set_num_threads(1)  # a forked process cannot use its parent's threads
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            save_checkpoint(tmp_path, 2, tensors(2, size=10**6), {})
        except CheckpointNotWritten:
            os._exit(7)

    save(tmp_path, 1)
    before = names(tmp_path)
    child = multiprocessing.get_context("fork").Process(target=write_under_a_limit)
    child.start()
    child.join()
    assert child.exitcode == 7
    assert names(tmp_path) == before
    assert load_latest(tmp_path).step == 1


def _save_for_ever(folder, step, pipe):
    torch.set_num_threads(1)  # a forked process cannot use its parent's threads
    remove_leftovers(folder)
    while True:
        save_checkpoint(folder, step, tensors(step, size=200_000), {"step": step})
        pipe.send(step)
        remove_old(folder, KeepRule(last=2))
        step += 1


def test_killed_at_any_moment_the_folder_resumes(tmp_path):
    context = multiprocessing.get_context("fork")
    rng = random.Random(0)
    step = 0
    for _ in range(20):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_save_for_ever, args=(tmp_path, step + 1, sender))
        child.start()
        sender.close()
        finished = receiver.recv()
        while receiver.poll(rng.random() * 0.02):
            finished = receiver.recv()
        child.kill()
        child.join()
        found = load_latest(tmp_path)
        assert found.step >= finished
        assert found.state == {"step": found.step}
        assert (found.tensors["student/w"] == found.step).all()
        latest = (tmp_path / "latest").read_text().strip()
        seal = json.loads((tmp_path / latest).with_suffix(".json").read_text())
        assert seal["bytes"] == (tmp_path / latest).stat().st_size
        step = found.step
    assert step >= 20
