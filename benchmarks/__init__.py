"""What is measured: each module is a command, `python -m benchmarks.NAME`."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # see `service`
