"""Time of a training step: layouts, supernet against static, training against plain torch.

python benchmarks/supernet_step.py [--json] [--quick] [--space S] [--batch-size N]
A step is forward and backward of one batch. The four ways are timed in turn, round by round.
Memory: what a process grows by at its peak over three steps, channels last, one process a way; the
supernet's step is the sandwich's (largest, smallest and a random subnet).
``train_supernet`` is timed step by step, and after each step plain torch trains static networks of
the same architectures on the same number of images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from peak import grown_bytes, median_of_children
from torch import Tensor, nn

import deploynas as dn
from deploynas.data import Split, build_dataset
from deploynas.nn import Lender, Loan, Supernet, build
from deploynas.spaces import Archs, SearchSpace
from deploynas.train import SupernetRecipe, TrainingProgress, train_supernet

LAYOUTS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 12")
    parser.add_argument("--space", default="mobile-small")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--peak-of", choices=("static", "supernet"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(peak_bytes(options))
        return
    space = dn.space(options.space)
    largest = space.largest()[0]
    side = space.decode(largest[None])[0]["resolution"]
    images = torch.randn(options.batch_size, space.in_channels, side, side)
    labels = torch.randint(space.num_classes, (options.batch_size,))
    ways: dict[str, Callable[[], None]] = {}
    for name, layout in LAYOUTS.items():
        x_bchw = images.contiguous(memory_format=layout)
        static = build(space, largest).to(memory_format=layout).train()
        supernet = Supernet(space).to(memory_format=layout).train()
        ways[f"static, {name}"] = step(static, labels, lambda m, x=x_bchw: m(x))
        ways[f"supernet, {name}"] = step(supernet, labels, lambda m, x=x_bchw: m(x, largest))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(4 if options.quick else 13):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if round_number:
                times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(t)) * 1e3 for name, t in times.items()}
    document = {
        "space": options.space,
        "batch_size": options.batch_size,
        "step_ms": medians,
        "channels_last_speedup": medians["static, default"] / medians["static, channels_last"],
        "supernet_over_static": medians["supernet, channels_last"]
        / medians["static, channels_last"],
    }
    document["train_over_plain"] = train_over_plain(space, options.batch_size, options.quick)
    num = 1 if options.quick else 5
    peaks = {way: median_of_children("--peak-of", way, num) for way in ("static", "supernet")}
    document["peak_bytes"] = peaks
    document["memory_over_static"] = peaks["supernet"] / peaks["static"]
    if options.json:
        print(json.dumps(document))
        return
    for name, value in medians.items():
        print(f"{name:26}{value:8.1f} ms a step of {options.batch_size} images")
    print(f"channels-last is {document['channels_last_speedup']:.2f}x as fast as the default")
    print(f"a supernet's step takes {document['supernet_over_static']:.3f}x a static network's")
    print(f"and {document['memory_over_static']:.2f}x its memory ({peaks['static'] / 1e6:.0f} MB)")
    print(f"train_supernet is {document['train_over_plain']:.3f}x as fast as plain torch")


def train_over_plain(space: SearchSpace, batch_size: int, quick: bool) -> float:
    """Images a second of ``train_supernet`` over those of plain loops over the same subnets."""
    resolution, rng = space.resolutions[-1], np.random.default_rng(0)
    space = space.with_resolutions([resolution])
    splits = [
        Split(
            rng.integers(0, 256, (num, *resolution.size, space.in_channels), np.uint8),
            np.arange(num) % space.num_classes,
        )
        for num in (4_096, 100, 100)
    ]
    dataset = build_dataset(
        name="noise", classes=[str(i) for i in range(space.num_classes)], train=splits[0],
        val=splits[1], test=splits[2], warnings=(), source="noise",
    )  # fmt: skip
    supernet = _Watched(space)
    images = torch.randn(batch_size, space.in_channels, *resolution.size)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size) % space.num_classes
    times: list[tuple[float, float]] = []
    resumed = time.perf_counter()

    def compare(state: TrainingProgress) -> None:
        nonlocal resumed
        own = time.perf_counter() - resumed
        networks = [
            build(space, arch).to(memory_format=LAYOUTS["channels_last"]).train()
            for arch in supernet.lent
        ]
        optimizers = [torch.optim.SGD(n.parameters(), 0.1, 0.9, nesterov=True) for n in networks]
        supernet.lent.clear()
        started = time.perf_counter()
        for network, optimizer in zip(networks, optimizers, strict=True):
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
        times.append((own, time.perf_counter() - started))
        if len(times) > (6 if quick else 40):
            raise _Enough
        resumed = time.perf_counter()

    with contextlib.suppress(_Enough):
        recipe = SupernetRecipe(epochs=1_000, batch_size=batch_size)
        train_supernet(supernet, dataset, recipe, on_progress=compare)
    own, plain = np.array(times[2:]).T
    return float(np.median(plain / own))


class _Enough(Exception):
    """Ends a training."""


class _Watched(Supernet):
    """Keeps what it lent."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.lent: list[Archs] = []

    def lend(self, arch: Archs, lender: Lender) -> Loan:
        self.lent.append(arch)
        return super().lend(arch, lender)


def peak_bytes(options: argparse.Namespace) -> int:
    """What this process grows by over three training steps."""
    space = dn.space(options.space)
    rng = np.random.default_rng(0)
    archs = np.concatenate([space.largest(), space.smallest(), space.sample(1, rng)])
    archs[:, 0] = archs[0, 0]
    side = space.decode(archs[:1])[0]["resolution"]
    layout = torch.channels_last
    x_bchw = torch.randn(options.batch_size, space.in_channels, side, side)
    x_bchw = x_bchw.contiguous(memory_format=layout)
    labels = torch.randint(space.num_classes, (options.batch_size,))
    is_static = options.peak_of == "static"
    # what the first convolution ever loads belongs to neither
    nn.Conv2d(3, 8, 3).to(memory_format=layout)(torch.randn(1, 3, 9, 9)).sum().backward()

    def train() -> None:
        module = build(space, archs[0]) if is_static else Supernet(space)
        module.to(memory_format=layout).train()
        for _ in range(3):
            module.zero_grad(set_to_none=True)
            for arch in archs[:1] if is_static else archs:
                logits = module(x_bchw) if is_static else module(x_bchw, arch)
                nn.functional.cross_entropy(logits, labels).backward()

    return grown_bytes(train)


def step(
    module: nn.Module, labels: Tensor, forward: Callable[[nn.Module], Tensor]
) -> Callable[[], None]:
    """One forward and backward pass."""

    def run() -> None:
        module.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(forward(module), labels).backward()

    return run


if __name__ == "__main__":
    main()
