"""Pretraining, evaluation and export: whatever runs on a data set.

ONNX Runtime reports its use to its makers unless told not to before it is imported; see `service`.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
