import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from esvit.config import BACKBONES
from tests.conftest import TINY
from trainer.evaluation import throughput
from trainer.evaluation.config import ThroughputConfig
from trainer.evaluation.throughput import check, describe, in_own_process, with_ratios
from trainer.evaluation.timing import Job


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
        ({"model": Path("m.onnx"), "image_size": 64}, "a model file has its own image size"),
        ({"model": Path("m.onnx"), "precisions": ("bf16",)}, "and precision"),
    ],
)
def test_request_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check(ThroughputConfig(**options))


def job(*batches, side=64):
    return Job(
        name="x",
        network=TINY,
        precision="fp32",
        batches=batches,
        side=side,
        repeats=1,
        device="cpu",
        compiled=False,
    )


@pytest.mark.slow  # processes of their own import torch again
def test_what_was_measured_before_a_batch_that_does_not_fit_is_kept():
    first, second = in_own_process(job(1, 10**9))
    assert first["images_per_s"] > 0
    assert (second["batch"], second["error"]) == (10**9, "out of memory")


@pytest.mark.slow
def test_what_was_measured_before_a_process_was_killed_is_kept():
    cases = in_own_process(job(1, 3000, side=224))
    first = next(cases)
    (process,) = multiprocessing.active_children()
    process.kill()
    (second,) = cases
    assert first["images_per_s"] > 0
    assert (second["batch"], second["error"]) == (3000, "process was ended; out of memory?")


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_raised_here():
    nothing = replace(job(1), network=Path("nothing.onnx"))
    with pytest.raises(FileNotFoundError, match=r"nothing\.onnx"):
        list(in_own_process(nothing))
