import pytest
import torch
from torch import nn

from esvit.backbones import attend as module
from esvit.backbones import remake
from esvit.backbones.attend import attend_with_weights
from esvit.backbones.lean_attention import Scores, attend_between, mix
from esvit.backbones.linear import linear
from esvit.backbones.packed import MapSize, cut_windows, parts_of, to_rows
from esvit.backbones.remake import keep_all
from esvit.backbones.swin_layers import WindowAttention
from esvit.backbones.windows import Windows

HEADS, DIM = 2, 32
SIZES = MapSize(2, 5, 9), MapSize(3, 4, 4)
pytestmark = pytest.mark.usefixtures("each_library", "each_kernel")
every_cut = pytest.mark.parametrize("windows", [Windows(4), Windows(4, 2)])


def made(windows, sizes=SIZES):
    """Make two layers, random slots of windows and what is added to their scores."""
    torch.manual_seed(0)
    parts = parts_of(windows, sizes, torch.device("cpu"))
    counts = [part.layout.slots.shape[0] if windows.shift else 1 for part in parts]
    biases = [torch.randn(n, HEADS, 16, 16, requires_grad=True) for n in counts]
    x = torch.randn(parts[-1].slot_span.stop, DIM)
    return nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), x, Scores(HEADS, parts, biases)


def written_out(qkv, proj, x, scores):
    slots = []
    for part, bias in zip(scores.parts, scores.biases, strict=True):
        common = qkv(x[part.slot_span]).view(-1, 16, 3, HEADS, DIM // HEADS)
        query, key, value = common.permute(2, 0, 3, 1, 4).unbind(0)
        mixed, _ = attend_with_weights(query, key, value, bias, (DIM // HEADS) ** -0.5)
        slots.append(proj(mixed.transpose(1, 2).flatten(2)).flatten(0, 1))
    return to_rows_with_gradient(torch.cat(slots), scores.parts)


def to_rows_with_gradient(x, parts):
    numbers = to_rows(torch.arange(len(x))[:, None], parts).flatten()
    return x[numbers]


def kept_apart(qkv, proj, x, scores):
    return linear(proj, mix(linear(qkv, x), scores))


def gradients(function, qkv, proj, x, scores):
    x = x.detach().requires_grad_()
    result = function(qkv, proj, x, scores)
    weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
    tensors = [x, *qkv.parameters(), *proj.parameters(), *scores.biases]
    return result, torch.autograd.grad((result.float() * weights).sum(), tensors)


@every_cut
@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1], SIZES[1:]])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 2**20])
@pytest.mark.parametrize("form", [attend_between, kept_apart])
def test_gradients_equal_autograds_of_the_written_out_form(
    monkeypatch, windows, sizes, chunk_bytes, form
):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    given = made(windows, sizes)
    torch.testing.assert_close(
        gradients(form, *given), gradients(written_out, *given), rtol=1e-5, atol=3e-5
    )


@every_cut
@pytest.mark.parametrize("form", [attend_between, kept_apart])
def test_bfloat16_is_as_near_to_float32_as_autocast(windows, form):
    qkv, proj, x, scores = made(windows)
    _, exact = gradients(written_out, qkv, proj, x, scores)

    def in_bfloat16(function, dtype):
        def run(qkv, proj, x, scores):
            with torch.autocast("cpu", torch.bfloat16):
                return function(qkv, proj, x.to(dtype), scores)

        return run

    _, lean = gradients(in_bfloat16(form, torch.bfloat16), qkv, proj, x, scores)
    _, written = gradients(in_bfloat16(written_out, torch.float32), qkv, proj, x, scores)
    for actual, beside, expected in zip(lean, written, exact, strict=True):
        assert (actual - expected).norm() <= 1.5 * (beside - expected).norm()


def test_what_is_kept_is_the_input_of_one_form_and_the_common_product_of_the_other():
    qkv, proj, x, scores = made(Windows(4))
    parameters = [*qkv.parameters(), *proj.parameters(), *scores.biases]
    addresses = {parameter.data_ptr() for parameter in parameters}

    def kept_by(function):
        kept = []

        def pack(tensor):
            kept.append(0 if tensor.data_ptr() in addresses else tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function()
        return sum(kept)

    for dtype in (torch.float32, torch.bfloat16):
        slots = x.to(dtype).requires_grad_()
        assert kept_by(lambda slots=slots: attend_between(qkv, proj, slots, scores)) == x.numel()
    common = qkv(x).detach().requires_grad_()
    assert kept_by(lambda: mix(common, scores)) == common.numel()


@pytest.mark.parametrize("windows", [Windows(4), Windows(4, 2)])
def test_a_learned_bias_does_not_keep_torch_from_its_fused_operator(windows, each_kernel):
    qkv, _, x, scores = made(windows)
    with torch.profiler.profile() as profile:
        mix(qkv(x), scores)
    names = {event.name for event in profile.events()}
    is_fused = "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert is_fused == (each_kernel == "none")
    assert "aten::_scaled_dot_product_attention_math" not in names


def test_a_layer_takes_the_lean_form_unless_it_is_dear_or_everything_is_kept(monkeypatch):
    attention = WindowAttention(8, 2, 3)
    nn.init.normal_(attention.relative_position_bias_table)
    parts = parts_of(Windows(3), [MapSize(2, 3, 3)], torch.device("cpu"))
    x = cut_windows(torch.randn(18, 8, requires_grad=True), parts)

    def name(dtype=torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return type(attention.rows(x, parts).grad_fn).__name__

    assert "AttendBetween" in name()
    assert "AttendBetween" in name(torch.float32)
    with keep_all():
        assert "AttendBetween" not in name()
    monkeypatch.setattr(remake, "WORTH_KEEPING", 8)
    assert "AttendBetween" in name()
    assert "AttendBetween" not in name(torch.float32)
