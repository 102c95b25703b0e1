"""Time of a training step: default layout against channels-last, supernet against static.

python benchmarks/supernet_step.py [--json] [--quick] [--space S] [--batch-size N]
A step is forward and backward of one batch. The four ways are timed in turn, round by round.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import deploynas as dn
from deploynas.nn import Supernet, build

LAYOUTS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 12")
    parser.add_argument("--space", default="mobile-small")
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
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
    if options.json:
        print(json.dumps(document))
        return
    for name, value in medians.items():
        print(f"{name:26}{value:8.1f} ms a step of {options.batch_size} images")
    print(f"channels-last is {document['channels_last_speedup']:.2f}x as fast as the default")
    print(f"a supernet's step takes {document['supernet_over_static']:.2f}x a static network's")


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
