import json
import logging
import sys
import time

import pytest

from service.logs import JsonLines, set_up_logging
from tests.service.calls import post_json
from tests.service.known import A


def line_of(record: logging.LogRecord) -> dict:
    text = JsonLines().format(record)
    assert "\n" not in text
    return json.loads(text)


def access_record(caplog) -> logging.LogRecord:
    """Wait for the line of the only call: it is written when the client has its answer already."""
    until = time.monotonic() + 30
    while not (records := [r for r in caplog.records if r.name == "service.access"]):
        assert time.monotonic() < until
        time.sleep(0.005)
    (record,) = records
    return record


def test_a_call_is_its_numbers(client, caplog):
    caplog.set_level("INFO", logger="service.access")
    response = post_json(client, "/embed", [A])
    record = access_record(caplog)
    line = line_of(record)
    assert line["time"].endswith("+00:00")
    assert (line["level"], line["logger"]) == ("info", "service.access")
    assert (line["method"], line["path"], line["status"]) == ("POST", "/embed", 200)
    assert line["bytes"] == len(response.request.content)
    assert line["ms"] > 0
    assert line["request_id"] == response.headers["x-request-id"]
    assert len(JsonLines().format(record)) < 300  # no room for an image


def test_methods_and_paths_of_a_clients_own_are_not_written(client, caplog):
    caplog.set_level("INFO", logger="service.access")
    client.request("SEARCH", "/secret-path?secret=1", headers={"secret": "x"})
    record = access_record(caplog)
    assert "secret" not in JsonLines().format(record)
    assert line_of(record)["method"] == "other"


def test_a_message_and_a_stack_stay_on_one_line():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.makeLogRecord({"msg": "went\nwrong", "exc_info": sys.exc_info()})
    line = line_of(record)
    assert line["message"] == "went\nwrong"
    assert "ValueError: two" in line["stack"]


@pytest.mark.parametrize(("style", "kind"), [("json", JsonLines), ("text", logging.Formatter)])
def test_the_log_is_set_up_in_the_style_asked_for(own_log, style, kind):
    root = logging.getLogger()
    set_up_logging("warning", style)
    (handler,) = root.handlers
    assert type(handler.formatter) is kind
    assert root.level == logging.WARNING
