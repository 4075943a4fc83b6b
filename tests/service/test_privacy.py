import subprocess
import sys

PROBE = """
import sys, service.engine_onnxruntime, service.engine_openvino
from openvino.tools.ovc.telemetry_utils import tm
import os
print(tm.__name__, os.environ["ORT_DISABLE_TELEMETRY"])
"""


def test_engines_do_not_report_home():
    probe = [sys.executable, "-W", "error::UserWarning", "-c", PROBE]
    shown = subprocess.run(probe, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["openvino.tools.ovc.telemetry_stub", "1"]
