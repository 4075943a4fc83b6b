import time
from email.utils import formatdate

import pytest

from service.retry import Retry


def test_waits_double_up_to_the_longest_and_end():
    retry = Retry(attempts=5, first_wait_s=1.0, longest_wait_s=3.0)
    waits = [retry.wait_s(attempt, None) for attempt in range(1, 5)]
    for wait, most in zip(waits, (1.0, 2.0, 3.0, 3.0), strict=True):
        assert most / 2 <= wait <= most
    assert retry.wait_s(5, None) is None


def test_waits_differ_between_clients():
    retry = Retry()
    assert len({retry.wait_s(3, None) for _ in range(20)}) > 1


def test_what_the_service_asks_for_is_the_least():
    assert Retry().wait_s(1, "7") == 7
    in_a_while = formatdate(time.time() + 2000, usegmt=True)
    assert 1000 <= Retry(longest_wait_s=3000).wait_s(1, in_a_while) <= 2000


def test_who_is_asked_to_wait_too_long_gives_up():
    assert Retry(longest_wait_s=30).wait_s(1, "31") is None


@pytest.mark.parametrize("retry_after", ["soon", "", "-5", "1e3", formatdate(0)])
def test_what_is_no_time_to_come_is_ignored(retry_after):
    assert Retry(first_wait_s=0.2).wait_s(1, retry_after) <= 0.2
