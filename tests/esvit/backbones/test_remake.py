import torch
from torch import nn
from torch.nn import functional as F

from esvit.backbones.remake import keep_all, use_and_remake


def kept_and_gradients(function, x, modules):
    """Numbers kept besides parameters, what came out, and all gradients."""
    kept = []
    parameters = [parameter for module in modules for parameter in module.parameters()]
    addresses = {parameter.data_ptr() for parameter in parameters}

    def pack(tensor):
        kept.append(0 if tensor.data_ptr() in addresses else tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function(x)
    return sum(kept), result, torch.autograd.grad(result.square().sum(), [x, *parameters])


def test_what_is_made_again_changes_no_gradient_and_is_not_kept():
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(8), nn.Linear(8, 3)
    x = torch.randn(2, 5, 8, requires_grad=True)
    plain = kept_and_gradients(lambda x: linear(norm(x)), x, [norm, linear])
    lean = kept_and_gradients(lambda x: use_and_remake(norm, x, linear), x, [norm, linear])
    assert torch.equal(plain[1], lean[1])
    assert all(torch.equal(a, b) for a, b in zip(plain[2], lean[2], strict=True))
    assert lean[0] == plain[0] - x.numel()


def test_nested_uses_are_each_made_again():
    torch.manual_seed(0)
    first, second = nn.Linear(8, 16), nn.Linear(16, 8)
    x = torch.randn(4, 8, requires_grad=True)

    def nested(x):
        return use_and_remake(torch.sin, x, lambda y: use_and_remake(F.gelu, first(y), second))

    modules = [first, second]
    plain = kept_and_gradients(lambda x: second(F.gelu(first(torch.sin(x)))), x, modules)
    lean = kept_and_gradients(nested, x, modules)
    torch.testing.assert_close(lean[2], plain[2])
    assert lean[0] < plain[0]


def test_autocast_holds_when_it_is_made_again():
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(8), nn.Linear(8, 3)
    x = torch.randn(4, 8, requires_grad=True)
    found = []
    for function in (lambda x: linear(norm(x)), lambda x: use_and_remake(norm, x, linear)):
        with torch.autocast("cpu", torch.bfloat16):
            result = function(x)
        found.append(torch.autograd.grad(result.float().sum(), [x, linear.weight]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_autocast_would_copy_is_not_kept_as_a_copy():
    norm, linear = nn.LayerNorm(8), nn.Linear(8, 3)

    def make(x):
        return norm(x).float()  # as autocast has it on CUDA

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return use_and_remake(make, x, linear)

    x = torch.randn(4, 8, requires_grad=True)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda kept: packed.append(kept) or kept, lambda kept: kept
    ):
        run(x)
    assert not any(kept.shape == (4, 8) and kept.dtype == torch.bfloat16 for kept in packed)


def test_block_in_which_everything_is_kept():
    x = torch.randn(4, 8, requires_grad=True)
    linear, calls = nn.Linear(8, 8), []

    def make(x):
        calls.append(1)
        return x * 2

    with keep_all():
        use_and_remake(make, x, linear).sum().backward()
    assert len(calls) == 1
    use_and_remake(make, x, linear).sum().backward()
    assert len(calls) == 3


def test_without_gradients_it_is_a_plain_call():
    with torch.no_grad():
        result = use_and_remake(torch.sin, torch.ones(2, requires_grad=True), torch.cos)
    assert torch.equal(result, torch.cos(torch.sin(torch.ones(2))))
