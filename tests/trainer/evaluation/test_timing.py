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

    monkeypatch.setattr(timing, "_time", full)
    (case,) = run(job(TINY))
    assert case["error"] == "out of memory"
