"""A picture of predicted against measured latency."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from deploynas.artifacts import open_atomic
from deploynas.profile.validate import Judgement

BAND = 0.05


def draw_validation(judgement: Judgement, title: str, path: Path) -> None:
    """Write a PNG: predicted against measured, and the relative errors below.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra ``report``).
        OutputError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured, predicted = judgement.measured_ms, judgement.predicted_ms
    low = np.array([e.low for e in judgement.measured])
    high = np.array([e.high for e in judgement.measured])
    figure = Figure(figsize=(6.4, 7.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    ends = np.array([measured.min() * 0.95, measured.max() * 1.05])
    top.fill_between(
        ends, ends * (1 - BAND), ends * (1 + BAND), color="#d9e6f2", lw=0, label="within 5 %"
    )
    top.plot(ends, ends, color="#5b6770", lw=1)
    spread = [measured - low, high - measured]
    top.errorbar(
        measured, predicted, xerr=spread, fmt="o", ms=4, lw=0.8, color="#1f5fa8",
        label="a network, with its 95 % interval",
    )  # fmt: skip
    top.set_ylabel("predicted, ms")
    top.legend(loc="upper left", frameon=False)
    table = judgement.table
    top.set_title(
        f"{title}\n{len(measured)} fresh networks: mean error {table.mape:.2%}, within 5 % "
        f"{table.within_5_percent:.0%}, Kendall tau {table.kendall_tau:.3f}",
        fontsize=10,
    )
    errors = judgement.errors * 100
    stated = judgement.half_width * 100
    bottom.axhspan(-stated, stated, color="#d9e6f2", lw=0)
    bottom.axhline(0, color="#5b6770", lw=1)
    bottom.plot(measured, errors, "o", ms=4, color="#1f5fa8")
    limit = max(1.2 * np.abs(errors).max(), 1.3 * stated)
    bottom.set_ylim(-limit, limit)
    bottom.set_xlim(ends[0], ends[1])
    bottom.set_ylabel("error, %")
    bottom.set_xlabel("measured, ms (band: the error that the model states)")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(image, format="png", dpi=120)
    with open_atomic(path) as file:
        file.write(image.getvalue())
