import math

import pytest
import torch

from trainer.evaluation.features import Rows
from trainer.evaluation.sgd import Plan, train_probes


def rows(features, part=7):
    return Rows(features.split(part), torch.arange(len(features)), len(features))


@pytest.mark.parametrize("are_many", [False, True])
def test_training_equals_the_written_out(are_many):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 4, generator=generator)
    targets = torch.randint(0, 3, (20,), generator=generator)
    wanted = torch.eye(3)[targets]
    if are_many:
        targets = wanted.bool()
    plan = Plan(base_lrs=(0.5, 3.0), epochs=4, batch=8, seed=5)
    counted = []
    found = [
        [(p.base_lr, p.epoch, p.layer.weight.detach().clone()) for p in probes]
        for probes in train_probes(rows(features), targets, 3, plan, counted.append)
    ]
    assert len(counted) == 4 * 3

    order = torch.Generator().manual_seed(5)
    weights = [torch.empty(3, 4).normal_(std=0.01, generator=order) for _ in plan.base_lrs]
    biases = [torch.zeros(3) for _ in plan.base_lrs]
    moving = [[torch.zeros(3, 4), torch.zeros(3)] for _ in plan.base_lrs]
    for epoch in range(4):
        for some in torch.randperm(20, generator=order).split(8):
            for j, base_lr in enumerate(plan.base_lrs):
                lr = base_lr * 8 / 256 * (1 + math.cos(math.pi * epoch / 4)) / 2
                logits = features[some] @ weights[j].T + biases[j]
                shares = logits.sigmoid() / 3 if are_many else logits.softmax(1)
                by_logits = (shares - wanted[some] / (3 if are_many else 1)) / len(some)
                moving[j][0] = 0.9 * moving[j][0] + by_logits.T @ features[some]
                moving[j][1] = 0.9 * moving[j][1] + by_logits.sum(0)
                weights[j] = weights[j] - lr * moving[j][0]
                biases[j] = biases[j] - lr * moving[j][1]
        for j, (base_lr, number, weight) in enumerate(found[epoch]):
            assert (base_lr, number) == (plan.base_lrs[j], epoch + 1)
            torch.testing.assert_close(weight, weights[j])


def test_rows_are_taken_in_the_order_asked_for():
    features = torch.arange(40.0).view(20, 2)
    places = torch.tensor([19, 0, 7, 6, 13, 14, 7])
    torch.testing.assert_close(rows(features).take(places), features[places])
