import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esvit import sweeps
from esvit.fused_loss import FusedLoss, compare_views, fused_cross_entropy
from esvit.head import Prototypes
from esvit.loss import Loss, match_regions
from esvit.model import Projections
from esvit.sweeps import Comparisons, Rows, Targets

pytestmark = pytest.mark.usefixtures("each_library", "each_kernel")


def unit_output(sizes, *, images, dim=16, prototypes=96, length=1.0):
    """Rows on the unit sphere, and directions of prototypes with lengths around a given one."""
    num_rows = images * sum(sizes)

    def unit(rows):
        return F.normalize(torch.randn(rows, dim), dim=-1)

    def normed():
        lengths = length * (0.5 + torch.rand(prototypes, 1))
        return Prototypes(torch.randn(prototypes, dim).requires_grad_(), lengths.requires_grad_())

    return Projections(
        view=unit(images * len(sizes)).requires_grad_(),
        view_prototypes=normed(),
        regions=unit(num_rows).requires_grad_(),
        region_prototypes=normed(),
        region_features=torch.randn(num_rows, 8),
        regions_per_view=tuple(sizes),
    )


def leaves(output):
    return [output.view, *output.view_prototypes, output.regions, *output.region_prototypes]


def results(loss_class, student, teacher, prototypes):
    """Loss parts, and all gradients of the student's leaves."""
    torch.manual_seed(1)
    loss = loss_class(prototypes)
    loss.center.normal_(std=0.1)
    loss.center_grid.normal_(std=0.1)
    losses = loss(student, teacher, 0.04)
    return losses, torch.autograd.grad(losses.total, leaves(student))


def assert_relatively_close(actual, expected, tolerance):
    assert (actual - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("length", [1.0, 30.0])
@pytest.mark.parametrize(
    ("sizes", "images", "prototypes"),
    [((4, 4), 1, 96), ((9, 9, 4, 4), 3, 96), ((6, 6, 3, 2, 1), 2, 100), ((49, 49, 9, 9), 2, 600)],
)
def test_gradients_equal_autograds_of_the_written_out_form(
    monkeypatch, sizes, images, prototypes, length
):
    budget = sweeps.CPU_BUDGET._replace(chunk_size=20 * prototypes)
    monkeypatch.setattr(sweeps, "CPU_BUDGET", budget)
    torch.manual_seed(0)
    student = unit_output(sizes, images=images, prototypes=prototypes, length=length)
    teacher = unit_output(sizes[:2], images=images, prototypes=prototypes, length=length)
    fused, fused_gradients = results(FusedLoss, student, teacher, prototypes)
    written, written_gradients = results(Loss, student, teacher, prototypes)
    torch.testing.assert_close(fused.total, written.total, rtol=1e-5, atol=0)
    for actual, expected in zip(fused_gradients, written_gradients, strict=True):
        assert_relatively_close(actual, expected, 1e-5)


def test_autocast_is_as_near_to_float32_as_the_written_out_form():
    torch.manual_seed(0)
    student, teacher = unit_output((9, 9, 4), images=3), unit_output((9, 9), images=3)
    exact, exact_gradients = results(Loss, student, teacher, 96)
    with torch.autocast("cpu", torch.bfloat16):
        written, written_gradients = results(Loss, student, teacher, 96)
        fused, fused_gradients = results(FusedLoss, student, teacher, 96)
    assert fused.total.dtype == torch.float32
    assert abs(fused.total - exact.total) <= max(abs(written.total - exact.total), 2e-3)
    for actual, beside, expected in zip(
        fused_gradients, written_gradients, exact_gradients, strict=True
    ):
        assert actual.dtype == torch.float32
        assert (actual - expected).norm() > 1e-4 * expected.norm()  # products are bfloat16
        assert (actual - expected).norm() <= 1.2 * (beside - expected).norm()


def test_prototypes_alike_bias_no_loss_under_autocast():
    """Logits then have a large part in common, which counts if rounded targets miss one."""
    errors = []
    for seed in range(16):
        torch.manual_seed(seed)
        student, teacher = (
            unit_output(sizes, images=3, prototypes=4096, dim=64) for sizes in ((9, 9, 4), (9, 9))
        )
        common = F.normalize(torch.randn(64), dim=0)
        for part in (student, teacher):
            part.region_prototypes.directions.detach().add_(8 * common)
            part.region_prototypes.lengths.detach().fill_(1)
            part.regions.detach().copy_(F.normalize(part.regions.detach() + common, dim=-1))
        exact, _ = results(Loss, student, teacher, 4096)
        with torch.autocast("cpu", torch.bfloat16):
            fused, _ = results(FusedLoss, student, teacher, 4096)
        errors.append(fused.region - exact.region)
    assert abs(torch.stack(errors).mean()) < 8e-4


@pytest.mark.parametrize(("is_autocast", "tolerance"), [(False, 2e-6), (True, 1e-2)])
@pytest.mark.parametrize("images", [1, 2])
def test_chunks_and_blocks_change_nothing(monkeypatch, images, is_autocast, tolerance):
    torch.manual_seed(0)
    student, teacher = (unit_output((4, 4), images=3, prototypes=1000) for _ in range(2))
    budget = sweeps.CPU_BUDGET._replace(chunk_size=images * 16 * 1000, block_bytes=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        whole, gradients = results(FusedLoss, student, teacher, 1000)
        monkeypatch.setattr(sweeps, "CPU_BUDGET", budget)
        cut, cut_gradients = results(FusedLoss, student, teacher, 1000)
    torch.testing.assert_close(cut.total, whole.total, rtol=tolerance, atol=0)
    for actual, expected in zip(cut_gradients, gradients, strict=True):
        assert_relatively_close(actual, expected, tolerance)


@pytest.mark.parametrize("is_autocast", [False, True])
def test_no_tensor_is_larger_than_the_prototypes(monkeypatch, is_autocast):
    """Of 128 rows of 8 images and 4096 prototypes, one image and 256 meet at a time."""
    budget = sweeps.CPU_BUDGET._replace(chunk_size=16 * 4096, block_bytes=1)
    monkeypatch.setattr(sweeps, "CPU_BUDGET", budget)
    student, teacher = (
        unit_output((4, 4), images=8, prototypes=4096, dim=4)._replace(region_features=features)
        for features in torch.randn(2, 64, 8)
    )
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    with Watch(), torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        results(FusedLoss, student, teacher, 4096)
    assert max(sizes) == 4096 * 4


def test_student_that_equals_its_target_has_no_gradient():
    torch.manual_seed(0)
    queries = torch.randn(1, 1, 16, requires_grad=True)
    prototypes = Prototypes(torch.randn(96, 16), torch.ones(96, 1))
    itself = Comparisons(
        torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0]), torch.ones(1), torch.ones(1)
    )
    targets = Targets(Rows(queries.detach(), prototypes), torch.zeros(96), itself)
    fused_cross_entropy(Rows(queries, prototypes), targets).backward()
    torch.testing.assert_close(queries.grad, torch.zeros_like(queries), atol=1e-6, rtol=0)


def test_gradient_follows_the_losses_own():
    torch.manual_seed(0)
    student, teacher = unit_output((4, 4, 2), images=2), unit_output((4, 4), images=2)
    (once,) = torch.autograd.grad(FusedLoss(96)(student, teacher, 0.1).total, student.regions)
    (thrice,) = torch.autograd.grad(3 * FusedLoss(96)(student, teacher, 0.1).total, student.regions)
    torch.testing.assert_close(thrice, 3 * once)


def test_second_backward_pass_is_refused():
    student, teacher = unit_output((4, 4), images=1), unit_output((4, 4), images=1)
    total = FusedLoss(96, view_weight=0, region_weight=1)(student, teacher, 0.1).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass only"):
        total.backward()


def test_evaluation_needs_no_graph():
    torch.manual_seed(0)
    student, teacher = unit_output((4, 4), images=1), unit_output((4, 4), images=1)
    with torch.no_grad():
        total = FusedLoss(96)(student, teacher, 0.1).total
    torch.testing.assert_close(total, Loss(96)(student, teacher, 0.1).total.detach())


def test_comparisons_by_hand():
    """Two global views of 2 regions, one local of 1: 4 pairs, each weighs a quarter."""
    first = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    second = torch.tensor([[[0.1, 1.0], [1.0, 0.1]]])
    local = torch.tensor([[[0.0, 3.0]]])
    found = compare_views([first, second, local], [first, second])
    assert found.matches.tolist() == [[3, 2, 1, 0, 1, 2]]
    assert found.starts.tolist() == [0, 1, 2, 3, 4]
    assert found.shares.tolist() == [1, 1, 1, 1, 0.5, 0.5]
    assert found.weights.tolist() == [1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 2]


def test_comparisons_stay_within_an_image():
    torch.manual_seed(0)
    student = [torch.randn(3, size, 5) for size in (7, 7, 2)]
    found = compare_views(student, student[:2])
    assert found.matches.shape == (3, 7 + 7 + 2 * 2)
    of_local = found.matches[:, 14:].view(3, 2, 2)  # image, region, teacher view
    for teacher in range(2):
        expected = match_regions(student[2], student[teacher]) + 7 * teacher
        assert torch.equal(of_local[..., teacher], expected)
    assert 3 * found.weights.sum() == pytest.approx(1)


def test_view_without_another_is_left_out():
    """One global view is compared with no view of the teacher's, two local ones are with one."""
    torch.manual_seed(0)
    student, teacher = unit_output((4, 2, 2), images=2), unit_output((4,), images=2)
    fused, fused_gradients = results(FusedLoss, student, teacher, 96)
    written, written_gradients = results(Loss, student, teacher, 96)
    torch.testing.assert_close(fused.total, written.total, rtol=1e-5, atol=0)
    for actual, expected in zip(fused_gradients, written_gradients, strict=True):
        assert_relatively_close(actual, expected, 1e-5)


def test_another_loss_does_not_touch_the_gradients_handed_out():
    torch.manual_seed(0)
    loss = FusedLoss(96)
    student, teacher = unit_output((4, 4, 2), images=2), unit_output((4, 4), images=2)
    total = loss(student, teacher, 0.1).total
    loss(unit_output((4, 4, 2), images=2), teacher, 0.1)
    gradients = torch.autograd.grad(total, leaves(student))
    expected = torch.autograd.grad(FusedLoss(96)(student, teacher, 0.1).total, leaves(student))
    for actual, wanted in zip(gradients, expected, strict=True):
        assert torch.equal(actual, wanted)
