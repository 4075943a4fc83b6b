import logging

from service.bulk import progress
from service.bulk.progress import Total, describe, follow
from service.bulk.run import Done

STEPS = [Done(0, 0), Done(4, 1), Done(3, 0), Done(3, 2)]


def test_totals_add_up():
    totals = list(follow(STEPS, 10))
    assert [(total.num_images, total.num_failed) for total in totals] == [
        (0, 0), (4, 1), (7, 1), (10, 3)
    ]  # fmt: skip
    assert totals[-1].images_per_s > 0


def test_a_line_says_how_far_how_fast_and_how_long():
    line = describe(Total(1200, 2, 50.0), 6200)
    assert line == "1,200/6,200 pictures, 2 failed, 50.0 images/s, 0:01:40 left"


def test_the_log_has_lines_and_a_terminal_one_that_is_rewritten(monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "LOG_S", 0.0)
    monkeypatch.setattr(progress, "TERMINAL_S", 0.0)
    list(follow(STEPS, 10))
    assert "10/10 pictures, 3 failed" in caplog.text
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    list(follow(STEPS, 10))
    assert "\r\x1b[K10/10 pictures, 3 failed" in capsys.readouterr().err
