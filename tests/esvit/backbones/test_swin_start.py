import torch
import torch.nn.functional as F

from esvit.backbones import Swin, SwinConfig
from esvit.backbones.swin_layers import WindowAttention
from esvit.backbones.swin_start import start_local

CONFIG = SwinConfig(dim=16, depths=(1, 1), num_heads=(2, 8), window=4, image_size=32)


def made(*, local, seed=0):
    torch.manual_seed(seed)
    backbone = Swin(CONFIG)
    if local:
        start_local(backbone)
    return backbone.eval()


def test_each_head_looks_at_one_neighbour():
    tables = [m for m in made(local=True).modules() if isinstance(m, WindowAttention)]
    neighbours = [(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)]
    for attention in tables:
        weights = attention.bias(None)[0].softmax(dim=-1)  # (heads, 16, 16)
        middle = 4 * 1 + 1
        for head, (row, column) in zip(weights, neighbours, strict=False):
            looked_at = int(head[middle].argmax())
            assert looked_at == middle - 4 * row - column
            assert head[middle].max() > 0.7


def test_the_pooled_feature_knows_what_lies_beside_what():
    """Pictures cut into the regions of the last stage, and put together in another order."""
    torch.manual_seed(1)
    images = torch.randn(6, 3, 4, 8, 4, 8)  # rows and columns of squares, and pixels in them
    order = torch.randperm(4)
    shuffled = images[:, :, order][:, :, :, :, order.flip(0)]

    def change(backbone):
        with torch.inference_mode():
            before, after = (
                F.normalize(backbone(x.reshape(6, 3, 32, 32)).pooled, dim=1)
                for x in (images, shuffled)
            )
        return float((before - after).norm(dim=1).mean())

    for seed in range(3):
        assert change(made(local=True, seed=seed)) > 2 * change(made(local=False, seed=seed))


def test_a_start_is_drawn_from_torchs_seed():
    one, same, other = made(local=True), made(local=True), made(local=True, seed=1)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, same.state_dict()[key], rtol=0, atol=0)
    weight = "layers.0.blocks.0.attn.qkv.weight"
    assert (one.state_dict()[weight] != other.state_dict()[weight]).any()
    assert abs(float(one.state_dict()[weight].std()) - 1 / 4) < 0.03
