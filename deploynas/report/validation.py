"""A picture of predicted against measured latency."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from deploynas.artifacts import open_atomic
from deploynas.profile.validate import Judgement

BAND = 0.05
POINT, SHADE, LINE = "#1f5fa8", "#dce8f4", "#5b6770"


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
    ends = np.array(
        [min(low.min(), predicted.min()) * 0.96, max(high.max(), predicted.max()) * 1.04]
    )
    table, stated = judgement.table, judgement.half_width * 100

    figure = Figure(figsize=(7.0, 8.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.02, ha="left", wrap=True)
    top.set_title(
        f"{len(measured)} fresh networks: mean error {table.mape:.1%}, within 5 % "
        f"{table.within_5_percent:.0%}, Kendall tau {table.kendall_tau:.3f}\n"
        f"sum of the layers, uncalibrated: mean error {judgement.sum_mape:.1%}",
        fontsize=9, loc="left", color=LINE,
    )  # fmt: skip
    top.fill_between(
        ends, ends * (1 - BAND), ends * (1 + BAND), color=SHADE, lw=0, label="within 5 %"
    )
    top.plot(ends, ends, color=LINE, lw=1, label="predicted = measured")
    top.errorbar(
        measured, predicted, xerr=[measured - low, high - measured], fmt="o", ms=4.5, lw=0.9,
        color=POINT, alpha=0.85, label="a network, with its measured 95 % interval",
    )  # fmt: skip
    top.set_xlim(*ends)
    top.set_ylim(*ends)
    top.set_ylabel("predicted latency, ms")
    top.legend(loc="upper left", frameon=False, fontsize=9)
    errors = judgement.errors * 100
    limit = 1.25 * max(np.abs(errors).max(), stated, 100 * BAND)
    bottom.axhspan(-100 * BAND, 100 * BAND, color=SHADE, lw=0)
    bottom.axhline(0, color=LINE, lw=1)
    for side in (-stated, stated):
        bottom.axhline(side, color=POINT, lw=0.9, ls="--")
    bottom.plot(measured, errors, "o", ms=4.5, color=POINT, alpha=0.85)
    bottom.set_ylim(-limit, limit)
    bottom.set_ylabel("error, %")
    bottom.set_xlabel(f"measured latency, ms (dashed: the ±{stated:.1f} % that the model states)")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eceff1", lw=0.6)
        axes.set_axisbelow(True)
    image = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(image, format="png", dpi=120)
    with open_atomic(path) as file:
        file.write(image.getvalue())
