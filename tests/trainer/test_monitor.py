import json
import math
import resource
import sys
import time
from contextlib import contextmanager

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.monitor import Meter, Monitor, drop_later_lines, note_skipped
from trainer.schedule import Scheduled
from trainer.step import StepReport

SCHEDULED = Scheduled(1e-3, 0.04, 0.996, 0.05)


def report(total, *, is_finite=True):
    return StepReport(total, total + 1, total - 1, 2.0, is_finite, SCHEDULED)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def monitor(folder, console, *, first_step=0, tensorboard=False):
    return Monitor(folder, console, first_step=first_step, num_steps=10, tensorboard=tensorboard)


def test_meter_averages_the_good_steps_and_begins_anew():
    meter = Meter(batch=32)
    for value in (report(1.0), report(math.nan, is_finite=False), report(3.0)):
        meter.add(value)
    found = meter.read()
    assert (found["loss"], found["loss_view"], found["loss_region"]) == (2, 3, 1)
    assert found["gradient_norm"] == 2
    meter.add(report(5.0))
    assert meter.read()["loss"] == 5


def test_meter_tells_speed_and_the_share_of_waiting():
    meter = Meter(batch=8)
    start = time.perf_counter()
    with meter.waiting():
        time.sleep(0.02)
    meter.add(report(1.0))
    time.sleep(0.02)
    found = meter.read()
    elapsed = time.perf_counter() - start
    assert 8 / elapsed <= found["images_per_s"] <= 8 / 0.04
    assert 0.02 / elapsed <= found["data_wait_share"] < 0.9


def test_metrics_are_lines_of_json_without_nan(tmp_path):
    with monitor(tmp_path, Console(stderr=True)) as told:
        told.write(1, {"loss": 2.5, "gradient_norm": math.nan})
        told.write(2, {"loss": 2.0})
    first, second = lines(tmp_path)
    assert (first["step"], first["loss"], first["gradient_norm"]) == (1, 2.5, None)
    assert (second["step"], second["loss"]) == (2, 2.0)


def test_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path):
    with monitor(tmp_path, Console(stderr=True)) as told:
        for step in range(1, 6):
            told.write(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with monitor(tmp_path, Console(stderr=True), first_step=3) as told:
        told.write(4, {"loss": 0.5})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (1, 1.0), (2, 1.0), (3, 1.0), (4, 0.5),
    ]  # fmt: skip


@contextmanager
def files_end_at(size):
    """As on a full disk, nothing can be written from that byte on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_costs_whole_lines_and_not_the_run(tmp_path, caplog):
    with monitor(tmp_path, Console(stderr=True)) as told:
        told.write(1, {"loss": 1.0})
        with files_end_at((tmp_path / "metrics.jsonl").stat().st_size + 9):
            told.write(2, {"loss": 1.0})
        told.write(3, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]
    assert "metrics.jsonl not written: [Errno 27]" in caplog.text


def test_file_of_which_nothing_stays_is_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    drop_later_lines(path, 0)
    path.write_text('{"step": 1}\n')
    drop_later_lines(path, 0)
    assert not path.exists()


def test_processes_that_do_not_write_leave_no_file(tmp_path):
    with monitor(tmp_path, None) as told:
        told.advance(1, 2.0)
        told.write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_log_line_says_step_loss_and_time_left(tmp_path, caplog):
    with caplog.at_level("INFO"), monitor(tmp_path, Console(stderr=True)) as told:
        told.write(5, {"loss": 2.5, "lr": 1e-3, "eval_knn": 0.5, "weight_decay": 0.04})
    (message,) = caplog.messages
    assert message.startswith("step 5/10  loss 2.5  lr 0.001  eval_knn 0.5  left 0:00:0")


def test_terminal_shows_a_bar(tmp_path, capsys):
    console = Console(stderr=True, force_terminal=True, width=80)
    with monitor(tmp_path, console) as told:
        told.advance(3, 1.25)
        told._bar.refresh()
    shown = capsys.readouterr().err
    assert "3/10" in shown
    assert "loss 1.250" in shown


def test_skipped_step_is_written_with_its_images(tmp_path):
    note_skipped(tmp_path, 7, report(math.inf, is_finite=False), ["a.jpg", "b.jpg"])
    line = json.loads((tmp_path / "skipped.jsonl").read_text())
    assert line == {"step": 7, "loss": None, "images": ["a.jpg", "b.jpg"]}


def scalars(folder):
    """What TensorBoard would show: each metric's steps and values."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_shows_the_metrics(tmp_path):
    with monitor(tmp_path, Console(stderr=True), tensorboard=True) as told:
        told.write(1, {"loss": 2.5, "lr": 0.25})
        told.write(2, {"loss": 2.0, "eval_knn": 0.5})
    assert scalars(tmp_path) == {
        "loss": [(1, 2.5), (2, 2.0)],
        "lr": [(1, 0.25)],
        "eval_knn": [(2, 0.5)],
    }


def test_tensorboard_forgets_what_came_after_the_checkpoint(tmp_path):
    with monitor(tmp_path, Console(stderr=True), tensorboard=True) as told:
        for step in range(1, 6):
            told.write(step, {"loss": 1.0})
    with monitor(tmp_path, Console(stderr=True), first_step=3, tensorboard=True) as told:
        told.write(4, {"loss": 0.5})
    assert scalars(tmp_path) == {"loss": [(1, 1.0), (2, 1.0), (3, 1.0), (4, 0.5)]}


def test_processes_that_do_not_write_leave_tensorboard_alone(tmp_path):
    with monitor(tmp_path, None, tensorboard=True) as told:
        told.write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_missing_tensorboard_is_said_in_words(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        monitor(tmp_path, Console(), tensorboard=True)
