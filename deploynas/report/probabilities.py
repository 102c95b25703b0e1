"""A picture of a gradient search: every block's probabilities over time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploynas.artifacts import open_atomic
from deploynas.search.gradient import HistoryPoint

COLUMNS = 4


def draw_probabilities(
    blocks: Sequence[tuple[str, Sequence[str]]], history: Sequence[HistoryPoint], path: Path
) -> None:
    """Write a PNG: a stacked area a block, and below them E[cost] and entropy.

    Args:
        blocks: Name and candidates of every mixed layer.
        history: From first to last.
        path: Of the picture.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra ``report``).
        OutputError: The file cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not blocks or not history:
        return
    steps = np.array([point.step for point in history])
    names = list(dict.fromkeys(name for _, candidates in blocks for name in candidates))
    shades = colormaps["viridis"](np.linspace(0.08, 0.95, len(names)))
    colors = {name: tuple(shade) for name, shade in zip(names, shades, strict=True)}
    num_rows = -(-len(blocks) // COLUMNS)
    figure = Figure(figsize=(11, 1.7 * num_rows + 2.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.7 * num_rows, 2.2], squeeze=False).flat
    axes = top.subplots(num_rows, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for number, (name, candidates) in enumerate(blocks):
        shares = np.array([point.probabilities[number] for point in history]).T
        axes[number].stackplot(steps, shares, colors=[colors[c] for c in candidates], lw=0)
        axes[number].set_title(name, fontsize=8, loc="left")
        axes[number].set_ylim(0, 1)
        axes[number].margins(x=0)
        axes[number].tick_params(labelsize=7)
    for unused in axes[len(blocks) :]:
        unused.set_visible(False)
    handles = [axes[0].fill_between([], [], color=colors[name], label=name) for name in names]
    top.legend(handles=handles, loc="outside lower center", ncols=len(names), fontsize=8,
               frameon=False)  # fmt: skip
    left, right = bottom.subplots(1, 2)
    for cost in history[-1].expected:
        left.plot(steps, [point.expected[cost] for point in history], label=f"E[{cost}]")
    left.set_title("expected cost", fontsize=9, loc="left")
    if history[-1].expected:
        left.legend(frameon=False, fontsize=8)
    right.plot(steps, [point.entropy for point in history])
    right.set_ylim(0, 1.02)
    right.set_title("entropy, share of its maximum", fontsize=9, loc="left")
    for pair in (left, right):
        pair.set_xlabel("weight step", fontsize=8)
        pair.tick_params(labelsize=7)
    image = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(image, format="png", dpi=110)
    with open_atomic(path) as file:
        file.write(image.getvalue())
