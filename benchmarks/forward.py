"""Our forward passes beside timm's and torchvision's of the same networks, in one run.

    pip install -e '.[train,bench]'
    python -m benchmarks.forward [--models swin_tiny_w7 deit_small_p16] [--modes eager compiled]

Everything gives pooled features of the same images, in inference mode, untrained. The networks of
a row take turns, and the row shows the median time of ours and how many times as long the others
take (more than 1: ours is faster). In bf16 weights and images are bfloat16.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from esvit.backbones import build
from esvit.backbones.vision import torchvision
from esvit.config import BACKBONES

TIMM = {
    "swin_tiny_w7": "swin_tiny_patch4_window7_224",
    "swin_base_w7": "swin_base_patch4_window7_224",
    "deit_small_p16": "deit_small_patch16_224",
    "vit_base_p16": "vit_base_patch16_224",
}
TORCHVISION = {"swin_tiny_w7": "swin_t", "swin_base_w7": "swin_b", "vit_base_p16": "vit_b_16"}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Pooled(nn.Module):
    """Our backbone, giving what the others give."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = build(BACKBONES[name])

    def forward(self, images: Tensor) -> Tensor:
        """Give (B, C)."""
        return self.backbone(images).pooled


def contenders(name: str) -> dict[str, nn.Module]:
    """Make ours and the others'; without a classifier, as far as they let."""
    import timm  # of the extra `bench`

    networks = {"ours": Pooled(name), "timm": timm.create_model(TIMM[name], num_classes=0)}
    if name in TORCHVISION:
        other = getattr(torchvision.models, TORCHVISION[name])(weights=None)
        setattr(other, "heads" if name.startswith("vit") else "head", nn.Identity())
        networks["torchvision"] = other
    return {label: network.eval() for label, network in networks.items()}


def time_row(
    networks: dict[str, Callable[[Tensor], Tensor]], images: Tensor, rounds: int
) -> dict[str, float]:
    """Let networks take turns, each in every place; gives the median seconds of each."""
    times: dict[str, list[float]] = {label: [] for label in networks}
    turns = list(networks.items())
    for number in range(rounds + 1):
        for label, network in turns:
            start = time.perf_counter()
            network(images)
            if number:  # the first round warms up
                times[label].append(time.perf_counter() - start)
        turns.append(turns.pop(0))  # who comes behind another finds the caches as that left them
    return {label: statistics.median(found) for label, found in times.items()}


def show_row(title: str, seconds: dict[str, float], batch: int) -> None:
    """Print one row."""
    ours = seconds.pop("ours")
    ratios = "  ".join(f"{label} {found / ours:.2f} x" for label, found in seconds.items())
    print(f"{title}  {1e3 * ours / batch:7.1f} ms an image   {ratios}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", choices=TIMM, default=["swin_tiny_w7", "deit_small_p16"]
    )
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=[*PRECISIONS])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for name in options.models:
        for precision in options.precisions:
            dtype = PRECISIONS[precision]
            images = torch.randn(options.batch, 3, 224, 224, dtype=dtype)
            networks = {label: x.to(dtype) for label, x in contenders(name).items()}
            for mode in options.modes:
                called = networks if mode == "eager" else _compiled(networks)
                with torch.inference_mode():
                    seconds = time_row(called, images, options.rounds)
                show_row(f"{name:<15} {precision} {mode:<8}", seconds, options.batch)


def _compiled(networks: dict[str, nn.Module]) -> dict[str, Callable[[Tensor], Tensor]]:
    return {label: torch.compile(network) for label, network in networks.items()}


if __name__ == "__main__":
    main()
