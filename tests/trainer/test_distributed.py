import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from trainer import distributed
from trainer.distributed import StopRequest, process_group

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _enter(function, rank, port, pipe):
    torch.set_num_threads(1)  # a forked process cannot use its parent's threads
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with process_group(timeout_s=30):
        pipe.send(function(rank))


def on_two_ranks(function):
    """Run a function of the rank in two processes joined by gloo; give both answers."""
    context, port = multiprocessing.get_context("fork"), free_port()
    pipes, children = [], []
    for rank in range(2):
        here, there = context.Pipe()
        children.append(context.Process(target=_enter, args=(function, rank, port, there)))
        children[-1].start()
        there.close()
        pipes.append(here)
    answers = [pipe.recv() for pipe in pipes]
    for child in children:
        child.join()
        assert child.exitcode == 0
    return answers


def test_alone_nothing_is_joined():
    with process_group():
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.is_main()
        assert distributed.largest(3) == 3
        distributed.barrier()
        with distributed.main_first():
            pass
        total = distributed.sum_over_ranks(torch.ones(2))
        assert total.tolist() == [1, 1]
        distributed.average_([total])
        assert total.tolist() == [1, 1]
        assert list(distributed.gather_states({"a": total})) == ["rank-0/a"]
    assert not torch.distributed.is_initialized()


def _collectives(rank):
    gradient = torch.tensor([1.0, 2.0]) * (rank + 1)
    mine = gradient.clone()
    distributed.average_([gradient])
    states = distributed.gather_states({"seed": torch.tensor([rank])})
    return {
        "place": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "sum": distributed.sum_over_ranks(mine).tolist(),
        "kept": mine.tolist(),
        "mean": gradient.tolist(),
        "largest": distributed.largest(5 - rank),
        "states": {name: tensor.tolist() for name, tensor in states.items()},
    }


def _averages(rank):
    generator = torch.Generator().manual_seed(rank)
    shapes = [(3,), (), (2, 5), (40,), (7, 1), (4,)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[3:3] = [
        torch.randn(3, generator=generator).double(),
        torch.randn(6, generator=generator),
    ]
    distributed.BUCKET_BYTES = 64  # in this process, which ends here
    before = [tensor.clone() for tensor in tensors]
    distributed.average_(tensors)
    sizes = [len(bucket) for bucket in distributed._buckets(tensors)]
    return [tensor.tolist() for tensor in before], [tensor.tolist() for tensor in tensors], sizes


def test_tensors_that_travel_together_are_averaged_each():
    (first, mean, sizes), (second, same, _) = on_two_ranks(_averages)
    assert sizes == [3, 1, 1, 1, 2]
    assert mean == same
    for one, other, average in zip(first, second, mean, strict=True):
        expected = (torch.tensor(one) + torch.tensor(other)) / 2
        torch.testing.assert_close(torch.tensor(average), expected)


def test_two_processes_agree():
    first, second = on_two_ranks(_collectives)
    assert first.pop("place") == (0, 2, True)
    assert second.pop("place") == (1, 2, False)
    assert (first.pop("kept"), second.pop("kept")) == ([1, 2], [2, 4])
    assert first == second
    assert first == {
        "sum": [3, 6],
        "mean": [1.5, 3],
        "largest": 5,
        "states": {"rank-0/seed": [0], "rank-1/seed": [1]},
    }


def test_the_main_process_goes_first(tmp_path):
    def look(rank):
        with distributed.main_first():
            found = (tmp_path / "made").exists()
            (tmp_path / "made").touch()
        return found

    assert on_two_ranks(look) == [False, True]


def test_a_failing_main_process_does_not_leave_the_others_waiting():
    def fail_first(rank):
        try:
            with distributed.main_first():
                if rank == 0:
                    raise ValueError("no such folder")
        except ValueError as error:
            return str(error)
        return "passed"

    assert on_two_ranks(fail_first) == ["no such folder", "passed"]


def test_a_signal_to_one_process_stops_both_at_the_same_step():
    def work(rank):
        with StopRequest() as stop:
            for step in range(100):
                if rank == 1 and step == 3:
                    os.kill(os.getpid(), signal.SIGUSR1)
                code = stop.exit_code()
                if code is not None:
                    return step, code
        return None

    assert on_two_ranks(work) == [(3, 75), (3, 75)]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_each_signal_has_its_exit_code_and_handlers_are_put_back(number, code):
    former = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.exit_code() is None
        os.kill(os.getpid(), number)
        assert stop.exit_code() == code
    assert signal.getsignal(number) is former


def test_a_second_interrupt_interrupts_at_once():
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from trainer.distributed import StopRequest, process_group, rank, world_size

with process_group(timeout_s=60), StopRequest() as stop:
    step, code = 0, None
    while code is None:
        if rank() == 1 and step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        code = stop.exit_code()
        step += 1
    weight = torch.zeros(1, requires_grad=True)
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()  # imports what would hold the group
    said = {"step": step, "code": code, "world_size": world_size()}
    out = Path(sys.argv[1], f"{rank()}.json")
tasks = Path("/proc/self/task").iterdir() if sys.platform == "linux" else []
said["threads"] = sorted((task / "comm").read_text().strip() for task in tasks)
out.write_text(json.dumps(said))
"""


@pytest.mark.slow
def test_torchrun_starts_the_group_of_which_nothing_is_left(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    run = subprocess.run(
        [sys.executable, "-m", *command, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    for number in range(2):
        said = json.loads((tmp_path / f"{number}.json").read_text())
        assert not [name for name in said.pop("threads") if "gloo" in name]
        assert said == {"step": 6, "code": 143, "world_size": 2}


def test_restarted_processes_do_not_read_what_the_dead_have_written():
    """The store of a start that died lives on, with the greeting of its process 1."""
    store = torch.distributed.HashStore()
    store.set("hello/1", "word of the dead")
    store.set("address", "of the dead")
    parts = {}

    def join(number):
        parts[number] = distributed.unused_part(store, number, 2, timeout_s=30)

    threads = [threading.Thread(target=join, args=(number,)) for number in (0, 1)]
    threads[0].start()
    while not store.check(["answer/word of the dead"]):
        time.sleep(0.001)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert not parts[1].check(["address"])
    parts[0].set("address", "of the living")
    assert parts[1].get("address") == b"of the living"


def test_process_that_does_not_come_is_named():
    with pytest.raises(TimeoutError, match=r"processes \[1, 2\] have not come"):
        distributed.unused_part(torch.distributed.HashStore(), 0, 3, timeout_s=0.05)
