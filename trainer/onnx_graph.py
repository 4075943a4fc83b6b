"""From a backbone to a model file in memory: traced, reduced in precision if asked, with passport.

Shape letters: B batch, H W height and width of an image in pixels.
"""

import warnings

import onnx
import torch
from onnxruntime.transformers import float16
from onnxruntime.transformers.onnx_model import (
    OnnxModel,
)
from onnxscript import optimizer
from torch import Tensor, nn

from esvit.backbones import AllOutputs, Backbone
from service.contract import INPUT, METADATA_KEY, OUTPUTS, ModelInfo, Output, PreprocessSpec

OPSET = 20
"""The first with a GELU of its own; both engines know it."""

NUM_LAST_BLOCKS = 4
"""Blocks in the output `last_blocks`, as in the published linear probe."""

MAX_BYTES = 2**31 - 1
"""What one protobuf message can hold."""

# Sums over many values, whose squares or whose count overflow or round away in half precision.
# The Clip behind a ReduceL2 stays in half precision, where its 1e-12 becomes the least number; as a
# float32 operation it would get a zero, and an empty position no number.
_FLOAT32_OPS = ["LayerNormalization", "Softmax", "ReduceMean", "ReduceL2"]


class Pixels2Outputs(nn.Module):
    """A backbone behind its normalisation: pixels as decoded in, the four outputs out.

    Attributes:
        spec: How an image becomes the pixels.
        embed: Makes embeddings (B, D) of all outputs; None where they are the pooled features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, spec: PreprocessSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.embed: nn.Module | None = None
        self.register_buffer("mean", 255 * torch.tensor(spec.mean)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(spec.std)[:, None, None])

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map (B, H, W, 3) uint8 to the outputs of the model-file contract, in its order."""
        outputs = self.all_outputs(pixels)
        embedding = outputs.pooled if self.embed is None else self.embed(outputs)
        return embedding, outputs.regions, outputs.attention, outputs.last_blocks

    def all_outputs(self, pixels: Tensor) -> AllOutputs:
        """Give all that the backbone says of (B, H, W, 3) uint8."""
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return self.backbone.all_outputs(images, min(NUM_LAST_BLOCKS, self.backbone.num_blocks))


def trace(graph: Pixels2Outputs) -> onnx.ModelProto:
    """Trace a graph for (B, S, S, 3) pixels, B dynamic, S the side of its squares.

    Raises:
        ValueError: if the weights are too many for one file.
    """
    num_bytes = sum(4 * parameter.numel() for parameter in graph.parameters())
    if num_bytes > MAX_BYTES:
        raise ValueError(f"weights take {num_bytes} bytes, a model file holds {MAX_BYTES}")
    side = graph.spec.crop
    pixels = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the exporter's use of its own parts
        warnings.simplefilter("ignore", DeprecationWarning)
        graph(pixels)  # so that window layouts are constants of the trace
        program = torch.onnx.export(
            graph,
            (pixels,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("B")},),
        )
    assert program is not None  # it is only where the exporter writes the file itself
    return _without_traces(program.model_proto)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store and compute in float16 but for sums that need float32; inputs and outputs stay."""
    # What is constant is worked out in float32 first; not every engine could do it in float16.
    model = optimizer.optimize(model, input_size_limit=MAX_BYTES, output_size_limit=MAX_BYTES)
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *_FLOAT32_OPS]
    converted: onnx.ModelProto = float16.convert_float_to_float16(
        model, keep_io_types=True, op_block_list=blocked
    )
    # The converter casts a tensor once for each node that reads it, always under one name, and
    # appends the casts at the end.
    nodes = {node.output[0]: node for node in converted.graph.node}
    del converted.graph.node[:]
    converted.graph.node.extend(nodes.values())
    OnnxModel(converted).topological_sort()
    return converted


def serialise(model: onnx.ModelProto, info: ModelInfo) -> bytes:
    """Put the passport in and make the bytes of the file."""
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=info.to_json())
    data: bytes = model.SerializeToString()
    return data


def output_shapes(model: onnx.ModelProto) -> dict[Output, tuple[int, ...]]:
    """Read the shape of each output for one image off the model."""
    shapes = {
        output.name: tuple(axis.dim_value for axis in output.type.tensor_type.shape.dim[1:])
        for output in model.graph.output
    }
    return {name: shapes[name] for name in OUTPUTS}


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what the exporter noted of our source files: paths do not belong into a product."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.doc_string = ""
        del part.metadata_props[:]
    return model
