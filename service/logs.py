"""What the service writes to its log: lines for people, or JSON for machines.

Of a call: method, path, status, duration, bytes of the body, request id; never images, keys,
queries or anything else that a client wrote.
"""

import logging
from datetime import UTC, datetime
from typing import Literal

import orjson

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object a line; of a call its numbers are fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        call = getattr(record, "call", None)
        line |= {"message": record.getMessage()} if call is None else call
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode(errors="replace")


def set_up_logging(level: str, style: Literal["text", "json"]) -> None:
    """Send the log of the process to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if style == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
