"""What the exporter and the service agree on: tensor names, preprocessing, the model's passport.

Standard library only, so that either side can import it without the other's dependencies.

A model file is one self-contained ONNX file. Its input is `pixels`, (B, H, W, 3) uint8 RGB exactly
as an image decoder gives it: scaling and normalisation are inside the graph, so that a caller
cannot get them wrong and a device receives a quarter of the bytes. B is dynamic, H and W are fixed.
Its outputs are the four named in `OUTPUTS`, all float32. Under the metadata key `METADATA_KEY` lies
`ModelInfo` as one JSON object.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

FORMAT = 1
"""Version of the model-file contract; a service refuses files of another one."""

METADATA_KEY = "esvit"
INPUT = "pixels"

Output = Literal["embedding", "regions", "attention", "last_blocks"]
OUTPUTS: tuple[Output, ...] = get_args(Output)
"""embedding (B, C), regions (B, L, C), attention (B, heads, L, L), last_blocks (B, D)."""


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """How an image becomes pixels; the same in training's evaluation, export and serving.

    Attributes:
        resize: Length in pixels that the shorter side is resized to before the centre crop.
        crop: Side in pixels of the square that the model sees.
        mean: Per-channel mean of RGB values in [0, 1], subtracted inside the graph.
        std: Per-channel standard deviation, divided by inside the graph.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop is {self.crop}, expected 1 to resize ({self.resize})")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The passport of a model file: all that a service needs to know of it.

    Attributes:
        name: What answers call the model.
        arch: Name of the backbone's row in the table of backbones.
        outputs: Shape of each output for one image, without the batch axis.
        grid: Rows and columns of the region map; their product is L.
        preprocess: How an image becomes pixels.
        precision: Arithmetic of the file's weights, "fp32" or "fp16".
        training: Recipe, data, steps and revision of the training run; None if untrained.
        licence: Licence of the weights, an SPDX expression where there is one.
        weights_sha256: Digest of the weights that were exported.
        whitening: From what embeddings were whitened, on how many images; None if they are the
            pooled features.
        format: Version of the contract.
    """

    name: str
    arch: str
    outputs: dict[Output, tuple[int, ...]]
    grid: tuple[int, int]
    preprocess: PreprocessSpec
    training: dict[str, Any] | None
    licence: str
    weights_sha256: str
    precision: Literal["fp32", "fp16"] = "fp32"
    whitening: dict[str, Any] | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"model file has format {self.format}, expected {FORMAT}")
        if set(self.outputs) != set(OUTPUTS):
            raise ValueError(f"model file has outputs {sorted(self.outputs)}, expected {OUTPUTS}")
        if self.outputs["regions"][0] != self.grid[0] * self.grid[1]:
            raise ValueError(f"{self.outputs['regions'][0]} regions do not fill a grid {self.grid}")

    @property
    def dim(self) -> int:
        """Length C of an embedding."""
        return self.outputs["embedding"][0]

    def to_json(self) -> str:
        """Write the passport as the JSON text that lies in the file's metadata."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelInfo":
        """Read a passport back.

        Raises:
            ValueError: if the text is not the JSON of a passport of this format.
        """
        try:
            fields = json.loads(text)
            preprocess = fields.pop("preprocess")
            outputs = fields.pop("outputs")
            return cls(
                preprocess=PreprocessSpec(
                    resize=preprocess["resize"],
                    crop=preprocess["crop"],
                    mean=tuple(preprocess["mean"]),
                    std=tuple(preprocess["std"]),
                ),
                outputs={name: tuple(shape) for name, shape in outputs.items()},
                grid=tuple(fields.pop("grid")),
                **fields,
            )
        except (
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
            json.JSONDecodeError,
        ) as error:
            raise ValueError(f"not the passport of a model file: {error!r}") from error
