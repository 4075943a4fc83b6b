import pytest
import torch

from tests.conftest import TINY
from trainer.evaluation import timing
from trainer.evaluation.timing import Job, run


def job(network, **options):
    usual = {"precision": "fp32", "batches": (1, 3), "side": 64, "repeats": 2}
    return Job(
        **{"name": "x", "device": "cpu", "compiled": False, **usual, **options}, network=network
    )


def test_every_batch_has_its_speed_and_memory():
    cases = list(run(job(TINY)))
    assert [case["batch"] for case in cases] == [1, 3]
    for case in cases:
        fastest, slowest = case["fastest_images_per_s"], case["slowest_images_per_s"]
        assert fastest >= case["images_per_s"] >= slowest > 0
        assert case["peak_mb"] > 50


def test_model_file_is_timed_at_its_own_size(model_path):
    (case,) = run(job(model_path, precision="own", batches=(2,)))
    assert case["images_per_s"] > 0


CPU_IS_FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), CPU_IS_FULL])
def test_what_does_not_fit_ends_the_batches_and_is_said(error, monkeypatch):
    def full(*_):
        raise error

    monkeypatch.setattr(timing, "_time", full)
    (case,) = run(job(TINY))
    assert case["error"] == "out of memory"


def test_other_faults_are_not_taken_for_want_of_memory(monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(timing, "_time", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(run(job(TINY)))
