"""Read a config.pbtxt with the messages that tritonclient ships, strictly, and print it as JSON."""

import importlib.util
import sys
from pathlib import Path

from google.protobuf import json_format, text_format

# By path: importing the package would ask for gRPC.
folder = Path(importlib.util.find_spec("tritonclient").submodule_search_locations[0])
spec = importlib.util.spec_from_file_location("model_config", folder / "grpc/model_config_pb2.py")
messages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(messages)

config = text_format.Parse(Path(sys.argv[1]).read_text(), messages.ModelConfig())
print(json_format.MessageToJson(config, indent=None, preserving_proto_field_name=True))
