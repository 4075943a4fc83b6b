from dataclasses import replace

import pytest
import torch

from esvit.backbones import windows
from esvit.backbones.remake import keep_all
from esvit.fused_loss import FusedLoss
from esvit.loss import Loss
from esvit.weights import read_weights, write_safetensors
from trainer.checkpoint import save_checkpoint
from trainer.config import LossConfig, ModelConfig
from trainer.networks import (
    CHECKPOINTS,
    build_state,
    load_state,
    speed_up,
    start_from,
    state_tensors,
    teacher_weights,
)
from trainer.recipes import smoke
from trainer.schedule import ScheduleConfig
from trainer.step import StepConfig, train_step

CPU = torch.device("cpu")
VIEW_ONLY = LossConfig(view_weight=1.0, region_weight=0.0)
SCHEDULE = ScheduleConfig(epochs=2, steps_per_epoch=1, warmup_epochs=0, warmup_teacher_epochs=0)


@pytest.fixture
def config(tmp_path):
    return smoke("images", tmp_path / "run")


def trained(config):
    """A state after two steps, so that everything has moved."""
    state = build_state(config, CPU)
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(2, 3, side, side, generator=generator) for side in (32, 32, 16)]
    for _ in range(2):
        train_step(state, [views], schedule_config=SCHEDULE, config=StepConfig())
    return state


def test_networks_begin_equal_and_as_the_seed_says(config):
    one, two = build_state(config, CPU), build_state(config, CPU)
    other = build_state(replace(config, seed=1), CPU)
    for name, tensor in one.student.state_dict().items():
        assert torch.equal(tensor, one.teacher.state_dict()[name])
        assert torch.equal(tensor, two.student.state_dict()[name])
    weights = [s.student.state_dict()["patch_embed.proj.weight"] for s in (one, other)]
    assert not torch.equal(*weights)
    assert not any(parameter.requires_grad for parameter in one.teacher.parameters())


def test_only_the_student_drops_blocks(config):
    state = build_state(replace(config, model=replace(config.model, drop_path=0.3)), CPU)
    rates = [
        [module.drop_rate for module in network.modules() if hasattr(module, "drop_rate")]
        for network in (state.student, state.teacher)
    ]
    assert max(rates[0]) == pytest.approx(0.3)
    assert max(rates[1]) == 0.0


def test_loss_is_the_one_asked_for(config):
    assert type(build_state(config, CPU).loss) is FusedLoss
    written = replace(config, loss=LossConfig(fused=False, student_temperature=0.2))
    loss = build_state(written, CPU).loss
    assert type(loss) is Loss
    assert loss.student_temperature == 0.2


def test_state_comes_back_from_its_tensors(config):
    state, fresh = trained(config), build_state(replace(config, seed=1), CPU)
    tensors = {name: tensor.clone() for name, tensor in state_tensors(state).items()}
    assert any(name.endswith("exp_avg") for name in tensors)
    load_state(fresh, tensors)
    found = state_tensors(fresh)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_view_only_run_gains_a_region_head(config):
    view_only = trained(replace(config, loss=VIEW_ONLY))
    folder = config.out / CHECKPOINTS
    folder.mkdir(parents=True)
    save_checkpoint(folder, 2, state_tensors(view_only), {})
    state = build_state(config, CPU)
    head = {n: x.clone() for n, x in state.student.state_dict().items() if "head_dense" in n}
    fresh = start_from(state, config.out)
    assert set(fresh) == head.keys()
    for name, tensor in state.student.state_dict().items():
        expected = head[name] if name in head else view_only.student.state_dict()[name]
        assert torch.equal(tensor, expected), name
    for name, tensor in head.items():
        assert torch.equal(tensor, state.teacher.state_dict()[name])
    assert torch.equal(state.loss.center, view_only.loss.center)
    assert not state.loss.center_grid.any()
    assert not state.optimizer.state


def test_weights_of_ours_start_both_networks(config, tmp_path):
    state = trained(config)
    path = tmp_path / "teacher.safetensors"
    write_safetensors(path, teacher_weights(config, state, {"steps": 2}))
    again = build_state(replace(config, seed=5), CPU)
    assert start_from(again, path) == []
    for network in (again.student, again.teacher):
        for name, tensor in state.teacher.state_dict().items():
            assert torch.equal(tensor, network.state_dict()[name])


def test_published_checkpoint_starts_networks_and_centers(config, reference):
    """The recorded one is of a backbone without a name, so the state is built from its configs."""
    path = reference / "checkpoint_tiny.pth"
    student, teacher = read_weights(path, "student"), read_weights(path, "teacher")
    state = build_state(config, CPU)
    state.student, state.teacher = student.build_model(), teacher.build_model()
    state.loss = Loss(student.head.num_prototypes)
    for network in (state.student, state.teacher):
        torch.nn.init.zeros_(network.backbone.norm.weight)
    assert start_from(state, path) == []
    assert torch.equal(state.student.backbone.norm.weight, student.state["norm.weight"])
    assert torch.equal(state.teacher.backbone.norm.weight, teacher.state["norm.weight"])
    assert state.loss.center.any()
    assert state.loss.center_grid.any()


def test_weights_of_another_backbone_are_refused(config, reference):
    with pytest.raises(ValueError, match=r"checkpoint_tiny\.pth: checkpoint"):
        start_from(build_state(config, CPU), reference / "checkpoint_tiny.pth")


def test_weights_of_a_shallower_backbone_are_refused(config, tmp_path):
    """Every tensor would fit, but some blocks would stay fresh."""
    path = tmp_path / "teacher.safetensors"
    weights = teacher_weights(config, build_state(config, CPU), {})
    last = "layers.2.blocks.2."
    shallow = replace(
        weights,
        state={name: x for name, x in weights.state.items() if not name.startswith(last)},
        backbone=replace(weights.backbone, depths=(1, 2, 2)),
    )
    write_safetensors(path, shallow)
    with pytest.raises(ValueError, match=f"another backbone: it has no {last}"):
        start_from(build_state(config, CPU), path)


def test_region_head_that_the_run_has_not_is_refused(config, tmp_path):
    path = tmp_path / "teacher.safetensors"
    write_safetensors(path, teacher_weights(config, build_state(config, CPU), {}))
    with pytest.raises(ValueError, match="head_dense"):
        start_from(build_state(replace(config, loss=VIEW_ONLY), CPU), path)


def test_folder_without_checkpoint_is_refused(config, tmp_path):
    (tmp_path / CHECKPOINTS).mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        start_from(build_state(config, CPU), tmp_path)


def test_recomputed_blocks_give_the_same_gradients(config):
    config = replace(
        config, model=ModelConfig(arch="swin_nano_w8", drop_path=0.5, head=config.model.head)
    )
    gradients, kept = [], {}
    for recompute in (False, True):
        state = build_state(config, CPU)
        speed_up(state, recompute=recompute, compiled=False, sides=())
        torch.manual_seed(3)
        views = [torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)]
        with keep_all():
            kept[recompute], output = kept_numbers(lambda: state.student(views))  # noqa: B023  # at once
        output.region_features.square().sum().backward()
        gradients.append([p.grad for p in state.student.backbone.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[True] < kept[False] / 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what compilers use of torch
def test_compiled_networks_lay_no_windows_out(config):
    config = replace(config, model=ModelConfig(arch="swin_nano_w8", head=config.model.head))
    state, found = build_state(config, CPU), set()

    def note(graph, _inputs):
        found.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    windows._layouts.clear()
    speed_up(state, recompute=False, compiled=True, sides=(40,))
    torch.compiler.reset()
    torch.compile(state.student.backbone, backend=note)(torch.zeros(2, 3, 40, 40))
    assert len(found) > 10
    assert not [name for name in found if "argsort" in name or "roll" in name]


def kept_numbers(function):
    """Count what a function's backward pass keeps besides parameters, and give its result."""
    count = 0

    def pack(tensor):
        nonlocal count
        count += 0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return count, result
