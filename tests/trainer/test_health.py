import math

import pytest
import torch

from esvit.head import Prototypes
from esvit.loss import Loss
from esvit.model import Projections
from trainer.health import Health, HealthCheck, diagnose
from trainer.step import TrainState

K, D, B = 16, 4, 6


class Fixed(torch.nn.Module):
    """A network that gives rows made beforehand, for as many views as it is shown."""

    def __init__(self, view, features, prototypes):
        super().__init__()
        self.view, self.features, self.prototypes = view, features, prototypes

    def forward(self, views):
        B = len(views[0])
        rows = torch.cat([self.view[:B]] * len(views))
        features = torch.cat([self.features[:B].flatten(0, 1)] * len(views))
        L = self.features.shape[1]
        prototypes = Prototypes(self.prototypes, self.prototypes.norm(dim=1, keepdim=True))
        return Projections(rows, prototypes, None, None, features, (L,) * len(views))


def state(view, features, prototypes):
    networks = [Fixed(view, features, prototypes) for _ in range(2)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    loss = Loss(K, region_weight=0.0, view_weight=1.0)
    return TrainState(student=networks[0], teacher=networks[1], optimizer=optimizer, loss=loss)


VIEWS = [torch.zeros(B, 3, 8, 8)] * 3


def test_reading_equals_the_written_out_numbers():
    generator = torch.Generator().manual_seed(0)
    view = torch.randn(B, D, generator=generator)
    prototypes = torch.randn(K, D, generator=generator)
    features = torch.randn(B, 3, 5, generator=generator)
    health = HealthCheck(2).read(state(view, features, prototypes), VIEWS, 0.5)
    entropy = divergence = 0.0
    for row in (view @ prototypes.T).double():
        p = [math.exp(x / 0.5) for x in row.tolist()]
        q = [math.exp(x / 0.1) for x in row.tolist()]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        entropy -= sum(x * math.log(x) for x in p) / B
        divergence += sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q, strict=True)) / B
    assert health.teacher_entropy == pytest.approx(entropy / math.log(K), rel=1e-5)
    assert health.kl == pytest.approx(divergence, rel=1e-4)
    assert health.used_prototypes == len(set((view @ prototypes.T).argmax(1).tolist()))
    assert health.answers == 2 * B
    means = features.mean(1)
    unit = means / means.norm(dim=1, keepdim=True)
    expected = (unit - unit.mean(0)).square().mean(0).sqrt().mean() * math.sqrt(5)
    assert health.feature_std == pytest.approx(float(expected), rel=1e-5)


def test_reading_changes_neither_mode_nor_random_states():
    run = state(torch.ones(B, D), torch.ones(B, 1, 5), torch.ones(K, D))
    before = torch.get_rng_state()
    HealthCheck(2).read(run, VIEWS, 0.5)
    assert run.student.training
    assert run.teacher.training
    assert torch.equal(before, torch.get_rng_state())


def test_networks_that_say_nothing_are_warned_of_once():
    """Prototypes that are all alike: every answer is uniform, and both networks agree on it."""
    run, check = state(torch.ones(B, D), torch.randn(B, 1, 5), torch.ones(K, D)), HealthCheck(2)
    said = [check.warning(check.read(run, VIEWS, 0.5)) for _ in range(5)]
    assert [message is not None for message in said] == [False, False, True, False, False]
    assert "uniform" in said[2]


GOOD = Health(0.6, 1.0, 0.5, 200, 4096)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"teacher_entropy": 0.99, "kl": 0.001}, "uniform"),
        ({"used_prototypes": 1}, "one answer"),
        ({"feature_std": 0.001}, "nearly the same"),
    ],
)
def test_each_collapse_has_its_words(change, word):
    assert diagnose(GOOD) is None
    found = diagnose(GOOD._replace(**change))
    assert found is not None
    assert word in found


def test_warning_comes_again_after_recovery():
    check, bad = HealthCheck(2), GOOD._replace(feature_std=0.0)
    said = [check.warning(reading) for reading in [bad] * 3 + [GOOD] + [bad] * 3]
    given = [number for number, message in enumerate(said) if message is not None]
    assert given == [2, 6]
