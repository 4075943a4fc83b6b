import pytest
import torch

from esvit.config import BACKBONES
from tests.conftest import TINY
from trainer.evaluation import throughput
from trainer.evaluation.config import ThroughputConfig
from trainer.evaluation.throughput import Job, check, describe, run, with_ratios


def job(network, **options):
    usual = {"precision": "fp32", "batches": (1, 3), "side": 64, "repeats": 2}
    return Job(
        **{"name": "x", "device": "cpu", "compiled": False, **usual, **options}, network=network
    )


def test_every_batch_has_its_speed_and_memory():
    cases = run(job(TINY))
    assert [case["batch"] for case in cases] == [1, 3]
    for case in cases:
        fastest, slowest = case["fastest_images_per_s"], case["slowest_images_per_s"]
        assert fastest >= case["images_per_s"] >= slowest > 0
        assert case["peak_mb"] > 50


def test_model_file_is_timed_at_its_own_size(model_path):
    (case,) = run(job(model_path, precision="own", batches=(2,)))
    assert case["images_per_s"] > 0


def test_what_does_not_fit_ends_the_batches_and_is_said(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(throughput, "_time", full)
    (case,) = run(job(TINY))
    assert case["error"] == "out of memory"


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
        {"name": "swin_nano_w7", "precision": "bf16", "batch": 8, "images_per_s": 300.0},
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
        ({"all": True, "batches": ()}, "batches are"),
        ({"all": True, "batches": (0,)}, "batches are"),
        ({"all": True, "repeats": 0}, "repeats 0"),
    ],
)
def test_request_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check(ThroughputConfig(**options))
