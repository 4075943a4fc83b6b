import json

import pytest

from service.contract import OUTPUTS, ModelInfo, PreprocessSpec
from tests.service.tiny_model import INFO


def changed(**fields: object) -> str:
    return json.dumps(json.loads(INFO.to_json()) | fields)


def test_passport_reads_back_as_it_was_written():
    assert ModelInfo.from_json(INFO.to_json()) == INFO


def test_dim_is_the_length_of_an_embedding():
    assert INFO.dim == 12


def test_outputs_are_the_four_of_the_contract():
    assert OUTPUTS == ("embedding", "regions", "attention", "last_blocks")


@pytest.mark.parametrize(("resize", "crop"), [(256, 0), (256, 257), (0, 0)])
def test_crop_must_fit_into_the_resized_image(resize, crop):
    with pytest.raises(ValueError, match=f"crop is {crop}, expected 1 to resize"):
        PreprocessSpec(resize=resize, crop=crop)


def test_another_format_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="format 2, expected 1"):
        ModelInfo.from_json(changed(format=2))


def test_a_missing_output_is_refused():
    with pytest.raises(ValueError, match=r"outputs \['embedding'\], expected"):
        ModelInfo.from_json(changed(outputs={"embedding": [12]}))


def test_regions_must_fill_the_grid():
    with pytest.raises(ValueError, match="16 regions do not fill a grid"):
        ModelInfo.from_json(changed(grid=[4, 5]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        "null",
        changed(extra=1),
        changed(grid=None),
        changed(preprocess=1),
        changed(grid=[16]),
        pytest.param("[" * 100_000, id="deep"),
        changed(outputs=dict.fromkeys(OUTPUTS, ())),
    ],
)
def test_what_is_no_passport_is_a_value_error(text):
    with pytest.raises(ValueError, match="not the passport of a model file"):
        ModelInfo.from_json(text)
