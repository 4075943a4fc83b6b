"""Triton's ONNX Runtime backend, for a server that comes without one: ONNX Runtime for Python.

Triton runs it in a process of its own, as the backend that a configuration names: the repository
is read, checked and warmed up as by any Triton.
"""

from pathlib import Path

import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One version of a model, by the interface that Triton asks of a backend in Python."""

    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = sorted(request.requested_output_names())
        pixels = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        arrays = self.session.run(names, pixels)
        return triton.InferenceResponse(list(map(triton.Tensor, names, arrays)))
