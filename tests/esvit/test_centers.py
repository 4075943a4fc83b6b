import pytest
import torch
from torch.nn import functional as F

from esvit import centers
from esvit.centers import average_over_processes, mean_logits, sinkhorn_center
from esvit.head import Prototypes
from esvit.loss import teacher_probs


def random_rows(rows, *, common=0.0):
    """Rows on the unit sphere around a common point, and 6 prototypes."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(rows, 4, generator=generator)
    prototypes = Prototypes(
        torch.randn(6, 4, generator=generator), 0.5 + torch.rand(6, 1, generator=generator)
    )
    return F.normalize(spread + common, dim=-1), prototypes


def test_mean_of_logits_is_logits_of_mean():
    rows, prototypes = random_rows(10)
    expected = (rows @ prototypes.weight.T).mean(dim=0, keepdim=True)
    torch.testing.assert_close(mean_logits(rows, prototypes), expected)


def scaled_in_turn(logits, temperature):
    """The teacher's distributions as the papers write them: rows and columns of one matrix."""
    mass = (logits.double() / temperature).exp()
    for _ in range(3):
        mass /= mass.sum(dim=1, keepdim=True)
        mass /= mass.mean(dim=0, keepdim=True) * mass.shape[1]
    return mass / mass.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("at_once", [1, 18, 2**22])
def test_softmax_with_the_solved_center_is_sinkhorn_and_knopps_matrix(monkeypatch, at_once):
    monkeypatch.setattr(centers, "_LOGITS_AT_ONCE", at_once)
    rows, prototypes = random_rows(10)
    logits = rows @ prototypes.weight.T
    probs = teacher_probs(logits, sinkhorn_center(rows, prototypes, 0.2), 0.2)
    torch.testing.assert_close(probs.double(), scaled_in_turn(logits, 0.2), rtol=1e-4, atol=1e-6)


def test_prototypes_share_a_batch_whose_rows_are_nearly_alike():
    rows, prototypes = random_rows(64, common=20.0)
    logits = rows @ prototypes.weight.T
    assert teacher_probs(logits, torch.zeros(1, 6), 0.01).mean(dim=0).max() > 0.9
    shares = teacher_probs(logits, sinkhorn_center(rows, prototypes, 0.01), 0.01).mean(dim=0)
    assert 0.02 < shares.min() < shares.max() < 0.4


def test_a_prototype_that_nobody_chooses_leaves_the_center_finite():
    rows = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    prototypes = Prototypes(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.full((2, 1), 10.0))
    assert sinkhorn_center(rows, prototypes, 0.01).isfinite().all()


def test_alone_the_average_over_processes_is_the_value():
    values = torch.ones(3)
    assert average_over_processes(values) is values


def in_two_processes(rank, store, results):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(store, 2), rank=rank, world_size=2
    )
    rows, prototypes = random_rows(10)
    center = sinkhorn_center(rows.chunk(2)[rank], prototypes, 0.2)
    average = average_over_processes(torch.tensor([2.0 * rank, 5.0]))
    results[rank] = average.tolist(), center.tolist()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_average_and_solve_for_one_center(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(
            in_two_processes, args=(str(tmp_path / "store"), results), nprocs=2
        )
        expected = sinkhorn_center(*random_rows(10), 0.2)
        for average, center in results.values():
            assert average == [1.0, 5.0]
            torch.testing.assert_close(torch.tensor(center), expected)
