"""When a call that was not taken is tried again."""

import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often and how patiently a call is tried again.

    Only what says that nothing was done is tried again: 429, 503, and no connection.

    Attributes:
        attempts: How often a call is tried at most.
        first_wait_s: Seconds before the second attempt; each further wait is twice as long, and
            shortened at random by up to a half, so that many clients do not come back at once.
        longest_wait_s: No wait is longer; a `Retry-After` beyond it ends the attempts.
    """

    attempts: int = 6
    first_wait_s: float = 0.25
    longest_wait_s: float = 30.0

    def wait_s(self, attempt: int, retry_after: str | None) -> float | None:
        """Give the seconds to wait after an attempt, counted from 1; None if it was the last."""
        asked_s = _seconds(retry_after)
        if attempt >= self.attempts or asked_s > self.longest_wait_s:
            return None
        backoff_s = min(self.longest_wait_s, self.first_wait_s * 2.0 ** (attempt - 1))
        shortened: float = backoff_s * random.uniform(0.5, 1.0)
        return max(asked_s, shortened)


PATIENT = Retry()
"""Gives up after some eight seconds, or when asked to wait longer than half a minute."""


def _seconds(retry_after: str | None) -> float:
    """Read a `Retry-After` of seconds or a date; 0 where there is none or it is neither."""
    if retry_after is None:
        return 0.0
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
