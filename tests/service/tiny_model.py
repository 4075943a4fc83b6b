"""A model file of a few kilobytes that keeps the contract: its outputs depend on the picture.

Each 8 x 8 px patch is projected by fixed random weights that are the same from left to right as
from right to left, so that a mirrored picture has exactly the mirrored region map.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.contract import INPUT, METADATA_KEY, ModelInfo, PreprocessSpec

SPEC = PreprocessSpec(resize=36, crop=32)
SIDE, PATCH, GRID = 32, 8, (4, 4)
L, C, HEADS, D = 16, 12, 2, 24

INFO = ModelInfo(
    name="tiny",
    arch="tiny_patches",
    outputs={
        "embedding": (C,),
        "regions": (L, C),
        "attention": (HEADS, L, L),
        "last_blocks": (D,),
    },
    grid=GRID,
    preprocess=SPEC,
    training=None,
    licence="CC0-1.0",
    weights_sha256="0" * 64,
)


def write_tiny_model(
    path: Path, passport: str | None = INFO.to_json(), num_heads: int = HEADS
) -> Path:
    """Write the model file, with another passport or none, or without attention, if asked."""
    model = helper.make_model(_graph(num_heads), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    if passport is not None:
        helper.set_model_props(model, {"other": "ignored", METADATA_KEY: passport})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def projection() -> NDArray[np.float32]:
    """Give the (PATCH * PATCH * 3, C) weights, mirror-symmetric in x."""
    weights = np.random.default_rng(7).normal(size=(PATCH, PATCH, 3, C))
    symmetric = (weights + weights[:, ::-1]) / np.sqrt(2 * PATCH * PATCH * 3)
    return symmetric.reshape(-1, C).astype(np.float32)


def constants() -> dict[str, NDArray[np.generic]]:
    """Give the graph's weights by name."""
    rng = np.random.default_rng(8)
    query_and_key = rng.normal(size=(2, HEADS, C, 4), scale=0.4).astype(np.float32)
    return {
        "mean": 255 * np.array(SPEC.mean, np.float32),
        "std": 255 * np.array(SPEC.std, np.float32),
        "projection": projection(),
        "query": query_and_key[0],
        "key": query_and_key[1],
        "to_patches": np.array([-1, GRID[0], PATCH, GRID[1], PATCH, 3]),
        "to_rows": np.array([-1, L, PATCH * PATCH * 3]),
        "to_heads": np.array([-1, 1, L, C]),
    }


def _graph(num_heads: int) -> onnx.GraphProto:
    """Describe the graph."""
    nodes = [
        _node("Cast", [INPUT], "float", to=TensorProto.FLOAT),
        _node("Sub", ["float", "mean"], "centred"),
        _node("Div", ["centred", "std"], "scaled"),
        _node("Reshape", ["scaled", "to_patches"], "split"),
        _node("Transpose", ["split"], "patches", perm=[0, 1, 3, 2, 4, 5]),
        _node("Reshape", ["patches", "to_rows"], "rows"),
        _node("MatMul", ["rows", "projection"], "regions"),
        _node("ReduceMean", ["regions"], "embedding", axes=[1], keepdims=0),
        _node("ReduceMax", ["regions"], "largest", axes=[1], keepdims=0),
        _node("Concat", ["embedding", "largest"], "last_blocks", axis=1),
        _node("Reshape", ["regions", "to_heads"], "heads"),
        _node("MatMul", ["heads", "query"], "queries"),
        _node("MatMul", ["heads", "key"], "keys"),
        _node("Transpose", ["keys"], "keys_transposed", perm=[0, 1, 3, 2]),
        _node("MatMul", ["queries", "keys_transposed"], "logits"),
        _node("Softmax", ["logits"], "all_heads", axis=-1),
        _node("Slice", ["all_heads", "first", "last", "axis"], "attention"),
    ]
    cut = {"first": np.array([0]), "last": np.array([num_heads]), "axis": np.array([1])}
    values = constants() | cut
    shapes = INFO.outputs | {"attention": (num_heads, L, L)}
    return helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["B", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *shape])
            for name, shape in shapes.items()
        ],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )


def _node(kind: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    """Make a node of one output."""
    return helper.make_node(kind, inputs, [output], name=output, **attributes)
