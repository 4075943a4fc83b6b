import math

import pytest
import torch
from torch.nn import functional as F

from trainer.evaluation.logistic import (
    STRENGTHS,
    Samples,
    _loss_and_gradient,
    best_strength,
    fit,
    scale_of,
    search,
    zero,
)


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 30.0, 0.05, 1.0, 4.0])
    return torch.randn(120, 5, generator=generator) * scales + 3 * scales


def labels_of(features):
    generator = torch.Generator().manual_seed(1)
    standard = (features - features.mean(0)) / features.std(0)
    return (standard[:, :3] + 0.7 * torch.randn(120, 3, generator=generator)).argmax(1)


def objective(weight, bias, standard, targets, strength):
    """The penalised sum of cross-entropies, written out."""
    logits = standard @ weight.T + bias
    if targets.dim() == 2:
        loss = -(targets * logits - (1 + logits.exp()).log()).sum()
    else:
        loss = -sum(logits[n].log_softmax(0)[k] for n, k in enumerate(targets.tolist()))
    return loss + strength / 2 * (weight**2).sum()


@pytest.mark.parametrize("strength", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize("are_many", [False, True])
def test_solution_has_no_slope(features, strength, are_many):
    targets = labels_of(features)
    if are_many:
        targets = F.one_hot(targets, 3).bool() | (features[:, 3:4] > 3)
    samples = Samples(features.split(50), targets)
    found = fit(samples, zero(scale_of(samples.parts), 3), strength)
    standard = (features.double() - features.double().mean(0)) / features.double().std(
        0, correction=0
    )
    wanted = targets.double() if are_many else targets

    def slope(weight, bias):
        weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        objective(weight, bias, standard, wanted, strength).backward()
        return max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))

    at_start = slope(torch.zeros_like(found.weight), torch.zeros_like(found.bias))
    assert slope(found.weight, found.bias) < 5e-4 * at_start
    scores = found.scores(samples.parts)
    torch.testing.assert_close(
        scores, (standard @ found.weight.T + found.bias).float(), atol=1e-3, rtol=1e-3
    )


def test_start_does_not_change_the_solution(features):
    samples = Samples([features], labels_of(features))
    start = zero(scale_of(samples.parts), 3)
    first = fit(samples, start, 1.0)
    again = fit(samples, fit(samples, start, 100.0), 1.0)
    torch.testing.assert_close(first.weight, again.weight, atol=1e-3, rtol=1e-3)


def test_feature_that_never_changes_is_no_division_by_zero(features):
    features[:, 2] = 7.0
    samples = Samples([features], labels_of(features))
    found = fit(samples, zero(scale_of(samples.parts), 3), 1.0)
    assert found.scores(samples.parts).isfinite().all()


@pytest.mark.parametrize("peak", [0, 1, 7, 37, 48, 90, 96])
def test_search_finds_a_single_peak_in_few_questions(peak):
    places = {strength: place for place, strength in enumerate(STRENGTHS)}
    asked = search(lambda strength: -abs(places[strength] - peak))
    assert best_strength(asked) == STRENGTHS[peak]
    assert len(asked) <= 15


def test_of_equal_strengths_the_strongest_is_taken():
    assert best_strength({1e-6: 0.5, 1.0: 0.7, 1e4: 0.7, 1e6: 0.1}) == 1e4


def test_strengths_are_eight_a_decade():
    assert len(STRENGTHS) == 97
    assert STRENGTHS[0] == pytest.approx(1e-6)
    assert STRENGTHS[-1] == pytest.approx(1e6)
    assert math.log10(STRENGTHS[8] / STRENGTHS[0]) == pytest.approx(1)


@pytest.mark.parametrize("are_many", [False, True])
def test_everything_is_computed_where_the_weights_are(features, are_many):
    targets = labels_of(features)
    samples = Samples(features.split(50), F.one_hot(targets, 3).bool() if are_many else targets)
    start = zero(scale_of(samples.parts), 3, torch.device("meta"))
    for found in _loss_and_gradient(samples, start):  # of tensors on two devices none comes out
        assert found.device.type == "meta"
