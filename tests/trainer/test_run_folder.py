import multiprocessing
import os
import socket

import pytest

from trainer.run_folder import RunFolderInUse, check_config, flatten, lock_folder

CONTEXT = multiprocessing.get_context("fork")


def _hold(folder, pipe):
    with lock_folder(folder):
        pipe.send("held")
        pipe.recv()


def hold_elsewhere(folder):
    here, there = CONTEXT.Pipe()
    child = CONTEXT.Process(target=_hold, args=(folder, there))
    child.start()
    assert here.recv() == "held"
    return child, here


def test_a_second_run_is_refused_with_host_and_process(tmp_path):
    child, pipe = hold_elsewhere(tmp_path)
    with (
        pytest.raises(RunFolderInUse, match=f"{socket.gethostname()}, process {child.pid}"),
        lock_folder(tmp_path),
    ):
        pass
    pipe.send("end")
    child.join()
    with lock_folder(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / "lock").read_text()
    assert (tmp_path / "lock").read_text() == ""


def test_the_lock_of_a_killed_run_is_taken_over_and_said_so(tmp_path, caplog):
    child, _ = hold_elsewhere(tmp_path)
    child.kill()
    child.join()
    assert f"process {child.pid}" in (tmp_path / "lock").read_text()
    with lock_folder(tmp_path):
        assert f"process {child.pid}" in caplog.text


def test_worker_processes_do_not_keep_the_lock(tmp_path):
    here, there = CONTEXT.Pipe()

    def hold_and_fork():
        with lock_folder(tmp_path):
            worker = CONTEXT.Process(target=there.recv)
            worker.start()
            there.send(worker.pid)
            os._exit(9)  # dies, and leaves its worker behind

    child = CONTEXT.Process(target=hold_and_fork)
    child.start()
    worker = here.recv()
    child.join()
    os.kill(worker, 0)  # still there
    with lock_folder(tmp_path):
        here.send("end")


def test_a_new_folder_gets_the_config_and_a_resumed_run_is_compared(tmp_path):
    config = {"seed": 1, "data": {"path": "x", "num_workers": 4}, "sizes": (96, 64)}
    check_config(tmp_path, config)
    check_config(tmp_path, config)
    changed = {"seed": 2, "data": {"path": "x", "num_workers": 8}, "new": 1}
    with pytest.raises(
        ValueError, match=r"new was 'absent', is 1; seed was 1, is 2; sizes was \[96, 64\]"
    ):
        check_config(tmp_path, changed, may_differ=["data.num_workers"])
    check_config(tmp_path, config | {"data": {"path": "y"}}, may_differ=["data"])


def test_flatten_names_values_by_their_path():
    assert flatten({"a": 1, "b": {"c": {"d": None}}}) == {"a": 1, "b.c.d": None}
