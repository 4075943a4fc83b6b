import pytest

from esvit.config import BACKBONES
from trainer.evaluation import throughput
from trainer.evaluation.config import ThroughputConfig
from trainer.evaluation.throughput import check, describe, with_ratios


def test_multiply_adds_and_parameters_are_the_published():
    """Swin-T: 28 M, 4.5 G (Liu et al. 2021, table 1), without its classifier of 0.8 M."""
    found = describe(BACKBONES["swin_tiny_w7"], 224)
    assert found["parameters_m"] == pytest.approx(27.5, abs=0.1)
    assert found["gmacs"] == pytest.approx(4.5, abs=0.1)


def test_ratios_stand_beside_the_papers():
    cases = [
        {"name": "swin_base_w14", "precision": "bf16", "batch": 8, "images_per_s": 30.0},
        {"name": "vit_base_p8", "precision": "bf16", "batch": 8, "images_per_s": 6.0},
        {"name": "vit_base_p8", "precision": "fp32", "batch": 8, "error": "out of memory"},
        {"name": "swin_base_w14", "precision": "fp32", "batch": 8, "images_per_s": 10.0},
        {"name": "swin_nano_w8", "precision": "bf16", "batch": 8, "images_per_s": 300.0},
    ]
    first, yardstick, _, alone, ours = with_ratios(cases)
    assert first["times_vit_base_p8"] == pytest.approx(5)
    assert first["paper_times_vit_base_p8"] == pytest.approx(254 / 63)
    assert yardstick["times_vit_base_p8"] == 1
    assert "times_vit_base_p8" not in alone
    assert "paper_images_per_s" not in ours


def test_names_of_the_papers_table_are_ours():
    assert set(throughput.PAPER) <= set(BACKBONES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of"),
        ({"arch": ("swin_tiny_w7",), "all": True}, "give one of"),
        ({"all": True, "batches": ()}, r"batches is \(\), expected"),
        ({"all": True, "batches": (0,)}, r"batches is \(0,\), expected"),
        ({"all": True, "repeats": 0}, "repeats is 0"),
    ],
)
def test_request_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check(ThroughputConfig(**options))
