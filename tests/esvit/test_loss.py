import json
from pathlib import Path

import numpy as np
import pytest
import torch

from esvit.centers import sinkhorn_center
from esvit.fused_loss import FusedLoss
from esvit.head import Prototypes
from esvit.loss import (
    Loss,
    match_regions,
    mixed_view_loss,
    region_loss,
    split_views,
    student_log_probs,
    teacher_probs,
    view_loss,
    view_pairs,
)
from esvit.model import Projections
from tests import oracles_loss

REFERENCE = Path(__file__).parent.parent / "reference" / "loss.npz"
B, K, SIZES = 3, 64, (49, 49, 9, 9, 9, 9, 9, 9, 9, 9)
ATOL = 2e-6


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def recorded_output(reference, step, who, sizes):
    """The recorded logits, as a bottleneck before prototypes that change nothing."""

    def rows(name):
        return torch.from_numpy(reference[f"{step}/in/{who}_{name}"]).requires_grad_()

    same = Prototypes(torch.eye(K), torch.ones(K, 1))
    return Projections(rows("cls"), same, rows("region"), same, rows("fea"), tuple(sizes))


def assert_equals_recorded(actual, reference, name):
    torch.testing.assert_close(
        actual.detach(), torch.from_numpy(np.asarray(reference[name])), atol=ATOL, rtol=0
    )


@pytest.mark.parametrize("loss_class", [Loss, FusedLoss])
@pytest.mark.parametrize(("objective", "weights"), [("view", (1, 0)), ("view_region", (0.5, 0.5))])
@pytest.mark.parametrize("is_task_by_task", [False, True])
def test_losses_gradients_and_centers_equal_the_recorded(
    reference, loss_class, objective, weights, is_task_by_task
):
    loss = loss_class(K, view_weight=weights[0], region_weight=weights[1])
    for step in ("step0", "step1"):
        student = recorded_output(reference, step, "s", SIZES)
        teacher = recorded_output(reference, step, "t", SIZES[:2])
        temperature = float(reference[f"{objective}/{step}/teacher_temp"])
        if is_task_by_task:
            total = loss.backward(student, teacher, temperature).total
        else:
            total = loss(student, teacher, temperature).total
            total.backward()
        loss.update_centers(teacher)

        name = f"{objective}/{step}"
        assert_equals_recorded(total, reference, f"{name}/loss")
        assert_equals_recorded(student.view.grad, reference, f"{name}/grad_s_cls")
        assert_equals_recorded(loss.center, reference, f"{name}/center_after")
        assert student.region_features.grad is None
        assert teacher.view.grad is None
        if weights[1]:
            assert_equals_recorded(student.regions.grad, reference, f"{name}/grad_s_region")
            assert_equals_recorded(loss.center_grid, reference, f"{name}/center_grid_after")


def test_mixed_view_loss_equals_the_recorded(reference):
    center = torch.zeros(1, K)
    for step in ("step0", "step1"):
        student = torch.from_numpy(reference[f"{step}/in/s_cls"]).requires_grad_()
        teacher = torch.from_numpy(reference[f"{step}/in/t_cls"])
        targets = torch.from_numpy(reference[f"{step}/in/targets_mixup"])
        temperature = float(reference[f"view_mixup/{step}/teacher_temp"])
        log_probs = student_log_probs(student, 0.1).chunk(len(SIZES))
        probs = teacher_probs(teacher, center, temperature).chunk(2)
        loss = torch.stack(
            [
                mixed_view_loss(log_probs[s], probs[t], targets[s])
                for t, s in view_pairs(len(SIZES), 2)
            ]
        ).mean()
        loss.backward()
        assert_equals_recorded(loss, reference, f"view_mixup/{step}/loss")
        assert_equals_recorded(student.grad, reference, f"view_mixup/{step}/grad_s_cls")
        center = 0.9 * center + 0.1 * teacher.mean(dim=0, keepdim=True)


def test_state_has_the_published_names(reference):
    assert list(Loss(K).state_dict()) == list(reference["state_dict_keys"])
    assert json.loads(bytes(reference["config_json"]).decode())["K"] == K


def random_output(sizes, *, images=2, dim=4, prototypes=6, with_region=True):
    num_rows = images * sum(sizes)

    def normed():
        return Prototypes(torch.randn(prototypes, dim), torch.rand(prototypes, 1))

    return Projections(
        view=torch.randn(images * len(sizes), dim),
        view_prototypes=normed(),
        regions=torch.randn(num_rows, dim) if with_region else None,
        region_prototypes=normed() if with_region else None,
        region_features=torch.randn(num_rows, 5),
        regions_per_view=tuple(sizes),
    )


@pytest.mark.parametrize("loss_class", [Loss, FusedLoss])
@pytest.mark.parametrize("sizes", [(5, 4), (5, 5, 2), (5, 5, 3, 2, 2), (6, 3, 1, 4)])
def test_any_number_and_size_of_views_equals_the_written_out_sum(loss_class, sizes):
    torch.manual_seed(0)
    student, teacher = random_output(sizes), random_output(sizes[:2])
    loss = loss_class(6)
    loss.center.normal_()
    loss.center_grid.normal_()

    losses = loss(student, teacher, 0.5)

    def logits(rows, prototypes, lengths):
        return split_views(rows @ prototypes.weight.T, lengths)

    def scaled(views, center, temperature):
        return [(view - center) / temperature for view in views]

    zeros, ones = torch.zeros(1, 6), [1] * len(sizes)
    expected_view = oracles_loss.all_pairs(
        scaled(logits(student.view, student.view_prototypes, ones), zeros, 0.1),
        scaled(logits(teacher.view, teacher.view_prototypes, [1, 1]), loss.center, 0.5),
        [torch.ones(2, 1, 1)] * len(sizes),
        [torch.ones(2, 1, 1)] * 2,
    )
    expected_region = oracles_loss.all_pairs(
        scaled(logits(student.regions, student.region_prototypes, sizes), zeros, 0.1),
        scaled(
            logits(teacher.regions, teacher.region_prototypes, sizes[:2]), loss.center_grid, 0.5
        ),
        split_views(student.region_features, sizes),
        split_views(teacher.region_features, sizes[:2]),
    )
    torch.testing.assert_close(losses.view, expected_view, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.region, expected_region, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.total, 0.5 * losses.view + 0.5 * losses.region)


def test_region_loss_equals_the_written_out_sum():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    student_logits, teacher_logits = torch.randn(2, 3, 6), torch.randn(2, 5, 6)
    loss = region_loss(
        student_logits.log_softmax(-1), teacher_logits.softmax(-1), match_regions(student, teacher)
    )
    expected = oracles_loss.region_loss(student_logits, teacher_logits, student, teacher)
    torch.testing.assert_close(loss, expected)


def test_view_loss_by_hand():
    log_probs = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = (np.log(2) + np.log(4 / 3)) / 2
    assert view_loss(log_probs, probs).item() == pytest.approx(expected)


def test_match_ignores_length():
    student = torch.tensor([[[1.0, 0.1]]])
    teacher = torch.tensor([[[0.5, 0.0], [9.0, 9.0]]])
    assert match_regions(student, teacher).tolist() == [[0]]


def test_paper_weights_double_the_loss():
    torch.manual_seed(0)
    student, teacher = random_output((5, 5, 2)), random_output((5, 5))
    half = Loss(6)(student, teacher, 0.5).total
    full = Loss(6, view_weight=1, region_weight=1)(student, teacher, 0.5).total
    torch.testing.assert_close(full, 2 * half)


def with_gradients(output):
    """The same output, each tensor the result of a network's last step."""
    leaves = [output.view, output.regions, *output.view_prototypes, *output.region_prototypes]
    for leaf in leaves:
        leaf.requires_grad_()
    return output._replace(view=1 * output.view, regions=1 * output.regions), leaves


@pytest.mark.parametrize("loss_class", [Loss, FusedLoss])
@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_task_by_task_gives_the_gradients_of_a_share_of_the_total(loss_class, centering):
    torch.manual_seed(0)
    given, teacher = random_output((5, 5, 2)), random_output((5, 5))
    student, leaves = with_gradients(given)
    losses = loss_class(6, centering=centering)(student, teacher, 0.5)
    expected = torch.autograd.grad(0.25 * losses.total, leaves)
    student, leaves = with_gradients(given)
    found = loss_class(6, centering=centering).backward(student, teacher, 0.5, share=0.25)
    torch.testing.assert_close([leaf.grad for leaf in leaves], list(expected))
    torch.testing.assert_close(tuple(found), tuple(part.detach() for part in losses))
    assert not found.total.requires_grad


@pytest.mark.parametrize("loss_class", [Loss, FusedLoss])
def test_prototypes_have_their_gradients_before_the_next_task_begins(loss_class):
    torch.manual_seed(0)
    student, _ = with_gradients(random_output((5, 5, 2)))
    seen = []

    class Watched(loss_class):
        def view_task(self, student, teacher, temperature):
            seen.append((student.region_prototypes.directions.grad, student.regions.grad))
            return super().view_task(student, teacher, temperature)

    Watched(6).backward(student, random_output((5, 5)), 0.5)
    ((prototypes, regions),) = seen
    assert prototypes.any()
    assert regions.any()


@pytest.mark.parametrize("field", ["view", "regions"])
@pytest.mark.parametrize("who", [0, 1])
def test_an_output_that_is_not_finite_leaves_no_finite_gradient(field, who):
    torch.manual_seed(0)
    outputs = [random_output((5, 5, 2)), random_output((5, 5))]
    getattr(outputs[who], field)[0, 0] = torch.inf
    student, leaves = with_gradients(outputs[0])
    FusedLoss(6).backward(student, outputs[1], 0.5)
    assert not any(leaf.grad.isfinite().any() for leaf in leaves)


def test_forward_leaves_centers_alone():
    torch.manual_seed(0)
    loss = Loss(6)
    loss(random_output((5, 5, 2)), random_output((5, 5)), 0.5)
    assert not loss.center.any()
    assert not loss.center_grid.any()


def test_view_task_alone_needs_no_region_head():
    torch.manual_seed(0)
    student = random_output((5, 5, 2), with_region=False)
    teacher = random_output((5, 5), with_region=False)
    loss = Loss(6, view_weight=1, region_weight=0)
    losses = loss(student, teacher, 0.5)
    loss.update_centers(teacher)
    assert losses.region == 0
    assert losses.total == losses.view
    assert not loss.center_grid.any()


def test_region_task_alone_leaves_the_view_center():
    torch.manual_seed(0)
    loss = Loss(6, view_weight=0, region_weight=1)
    teacher = random_output((5, 5))
    losses = loss(random_output((5, 5, 2)), teacher, 0.5)
    loss.update_centers(teacher)
    assert losses.view == 0
    assert not loss.center.any()
    assert loss.center_grid.any()


def test_region_task_without_region_head_is_refused():
    student = random_output((5, 5), with_region=False)
    with pytest.raises(ValueError, match="region head"):
        Loss(6)(student, student, 0.5)


def test_lone_view_is_refused():
    with pytest.raises(ValueError, match="1 student and 1 teacher views make no pair"):
        view_pairs(1, 1)


@pytest.mark.parametrize("weights", [(0, 0), (-1, 1)])
def test_weights_that_ask_for_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="loss weights are"):
        Loss(6, view_weight=weights[0], region_weight=weights[1])


@pytest.mark.parametrize("loss_class", [Loss, FusedLoss])
def test_solved_centers_are_those_of_the_batch_and_no_update_moves_them(loss_class):
    torch.manual_seed(0)
    student, teacher = random_output((5, 5, 2)), random_output((5, 5))
    loss, given = loss_class(6, centering="sinkhorn"), Loss(6)
    given.center.copy_(sinkhorn_center(teacher.view, teacher.view_prototypes, 0.5))
    given.center_grid.copy_(sinkhorn_center(teacher.regions, teacher.region_prototypes, 0.5))
    for _ in range(2):
        losses, expected = loss(student, teacher, 0.5), given(student, teacher, 0.5)
        torch.testing.assert_close(losses.view, expected.view)
        torch.testing.assert_close(losses.region, expected.region)
        loss.update_centers(teacher)
        torch.testing.assert_close(dict(loss.state_dict()), dict(given.state_dict()))
