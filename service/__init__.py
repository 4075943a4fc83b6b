"""The REST service: a model file in, vectors out. Never imports torch.

Both engines report their use to their makers unless told not to: ONNX Runtime by this variable,
OpenVINO when it finds the package that does so. Neither may, so this comes before any import.
"""

import os
import sys

VERSION = "0.1.0"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not importable
