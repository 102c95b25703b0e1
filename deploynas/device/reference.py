"""The reference set: fixed models that every round of every measurement times.

Profile and check share it, so that two runs weeks apart can be compared and a slower clock is
seen for what it is. Machines drift in two ways that do not go together: the core's own speed,
and the speed of the memory that several cores or guests share. So there are two levels: *core*, a
chain of blocks that fits a private cache, and *memory*, one that streams 13 MB of weights. Each
is a chain because the layout of a session's memory is a draw, which its blocks average out.
"""

from __future__ import annotations

from pathlib import Path

from deploynas.graph.emit import RandomWeights, write_model
from deploynas.spaces.layers import Layer, chain

VERSION = "3"  # part of a device's identity: levels of two sets cannot be compared
_CORE = (
    Layer("mbconv", 16, 24, 56, 56, kernel_size=3, stride=2, mid_channels=64, activation="relu"),
    Layer(
        "mbconv", 24, 40, 28, 28, kernel_size=5, stride=2, mid_channels=96, se_channels=24,
        activation="relu",
    ),
    Layer(
        "mbconv", 40, 40, 14, 14, kernel_size=5, mid_channels=160, se_channels=40,
        activation="h_swish", residual=True,
    ),
    Layer("mbconv", 40, 48, 14, 14, kernel_size=3, mid_channels=160, activation="h_swish"),
    Layer("mbconv", 48, 48, 14, 14, kernel_size=7, mid_channels=192, activation="relu"),
    Layer("conv", 48, 48, 14, 14, kernel_size=3, activation="relu"),
)  # fmt: skip
_STREAM = Layer(
    "mbconv", 256, 256, 4, 4, kernel_size=3, mid_channels=1536, activation="relu", residual=True
)
_NETWORKS = (_CORE, [_STREAM] * 4)


def write_references(directory: Path) -> list[Path]:
    """Write the reference models into ``directory``: core, then memory; always the same."""
    paths = []
    for i, layers in enumerate(_NETWORKS):
        path = directory / f"reference-{i}.onnx"
        paths.append(write_model(path, chain(layers), RandomWeights(i)))
    return paths
