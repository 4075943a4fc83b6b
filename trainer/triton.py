"""A model file as Triton Inference Server serves it: a repository with the model's configuration.

    DIR/<name>/config.pbtxt
    DIR/<name>/1/model.onnx

Triton decodes no images: its clients send the pixels that `service.preprocess` makes, (B, S, S, 3)
uint8, and choose outputs by name.
"""

import json
import math
import re
from pathlib import Path

from service.contract import INPUT, ModelInfo

MAX_BATCH = 32
"""Images that Triton puts together at most."""

QUEUE_DELAY_US = 2000
"""How long a request waits for others to share a run with."""


def model_name(info: ModelInfo) -> str:
    """Give the name of the model's folder, which is its name in Triton's addresses."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", info.name)


def triton_config(info: ModelInfo) -> str:
    """Write the `config.pbtxt` of a model: protobuf text of Triton's `ModelConfig`."""
    side = info.preprocess.crop
    outputs = ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_FP32 dims: {json.dumps(list(shape))} }}'
        for name, shape in info.outputs.items()
        if math.prod(shape)  # attention of a network that has none
    )
    passport = json.dumps(
        info.to_json(), ensure_ascii=False
    )  # a JSON string is a protobuf text string as well
    return f"""name: "{model_name(info)}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [
  {{ name: "{INPUT}" data_type: TYPE_UINT8 dims: [{side}, {side}, 3] }}
]
output [
{outputs}
]
dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_US} }}
model_warmup [
  {{
    name: "grey"
    batch_size: 1
    inputs {{
      key: "{INPUT}"
      value: {{ data_type: TYPE_UINT8 dims: [{side}, {side}, 3] zero_data: true }}
    }}
  }}
]
parameters {{ key: "esvit" value: {{ string_value: {passport} }} }}
"""


def repository_files(folder: Path, info: ModelInfo) -> tuple[Path, Path]:
    """Make a model's folders in a repository; gives where its configuration and its file belong."""
    version = folder / model_name(info) / "1"
    version.mkdir(parents=True, exist_ok=True)
    return version.parent / "config.pbtxt", version / "model.onnx"
