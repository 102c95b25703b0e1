"""NAS-Bench-201 as a table: a stand-in for a latency model, an evaluator, and what is true."""

from __future__ import annotations

import csv
import functools
import gzip
from pathlib import Path

import numpy as np

from deploynas import spaces
from deploynas.search import Budget, Problem
from deploynas.search.fidelities import Spending
from deploynas.spaces import Archs
from deploynas.spaces.nasbench201 import OPERATIONS, cell_text, parse_cell

CHEAP, FULL = "val_12_epochs", "test_200_epochs"
SPENDING = Spending(cheap=12, dear=200, total=4_000)  # epochs
SEED_NOISE = 0.0025  # deviation of one training's accuracy after 200 epochs
NUM_DEAREST = 20


class Table:
    """Every architecture's accuracies and, on one device, its latency.

    Args:
        folder: With ``accuracy.csv.gz`` and ``latency_ms.csv.gz``.
        data: Data set: the columns' prefix.
        device: A column of the latencies; None for no limit.
        quantile: Of its latencies, which is the budget.

    Attributes:
        space: Its rows.
        budget: The limit, if there is one.
        archs: ``(n, num_choices)`` every architecture.
        cheap, full: ``(n,)`` fractions: what a search sees, and what it is judged by.
        admitted: ``(n,)`` whether the budget admits it.
    """

    half_width = 0.0

    def __init__(
        self, folder: Path, data: str, device: str | None = None, quantile: float = 0.3
    ) -> None:
        self.space = spaces.space("nasbench201")
        cells, accuracies = _columns(
            folder / "accuracy.csv.gz", [f"{data}_{CHEAP}", f"{data}_{FULL}"]
        )
        dicts = [{"resolution": self.space.resolutions[0], **parse_cell(cell)} for cell in cells]
        self.archs = self.space.encode(dicts)
        self.cheap, self.full = accuracies.T / 100
        self._place = np.empty(self.space.size, np.int64)
        self._place[self._flat(self.archs)] = np.arange(len(self.archs))
        self._ms = np.zeros(len(self.archs))
        self.budget = Budget()
        if device is not None:
            _, found = _columns(folder / "latency_ms.csv.gz", [device])
            self._ms = found[:, 0]
            self.budget = Budget(latency_ms=float(np.quantile(self._ms, quantile)))
        self.admitted = Problem(self, self.budget).admits(self.archs)

    @staticmethod
    def _flat(archs: Archs) -> np.ndarray:
        digits = len(OPERATIONS) ** np.arange(archs.shape[1] - 1)
        return archs[:, 1:].astype(np.int64) @ digits

    def places(self, archs: Archs) -> np.ndarray:
        """``(n,)`` indices into :attr:`archs`."""
        return self._place[self._flat(archs)]

    def evaluate(self, archs: Archs) -> np.ndarray:
        """``(n,)`` validation accuracies after 12 epochs."""
        return self.cheap[self.places(archs)]

    def evaluate_at(self, archs: Archs, fidelity: int, rng: np.random.Generator) -> np.ndarray:
        """``(n,)`` cheap accuracies (0), or those of one training over 200 epochs (1)."""
        if fidelity == 0:
            return self.evaluate(archs)
        return self.full[self.places(archs)] + rng.normal(0, SEED_NOISE, len(archs))

    def upper_ms(self, archs: Archs) -> np.ndarray:
        """``(n,)`` measured latencies."""
        return self._ms[self.places(archs)]

    predict_ms = upper_ms

    def cell(self, place: int) -> str:
        """As the table writes it."""
        return cell_text(self.space.decode(self.archs[[place]])[0])

    def dearest(self) -> Archs:
        """``(20, num_choices)`` of most MACs within budget."""
        inside = self.archs[self.admitted]
        return inside[np.argsort(-self.space.macs(inside), kind="stable")][:NUM_DEAREST]


def devices(folder: Path) -> list[str]:
    """Those whose latencies are there."""
    return _rows(folder / "latency_ms.csv.gz")[0]


def data_sets(folder: Path) -> list[str]:
    """Those whose accuracies are there."""
    header = _rows(folder / "accuracy.csv.gz")[0]
    return [name.removesuffix(f"_{CHEAP}") for name in header if name.endswith(CHEAP)]


@functools.cache
def _rows(path: Path) -> list[list[str]]:
    """The header, then a row an architecture."""
    if not path.is_file():
        raise SystemExit(f"{path}: no such file")
    with gzip.open(path, "rt") as file:
        return list(csv.reader(file))


def _columns(path: Path, names: list[str]) -> tuple[list[str], np.ndarray]:
    """The first column as text, and some columns as numbers, ``(n, len(names))``."""
    header, *rows = _rows(path)
    lacking = [name for name in names if name not in header]
    if lacking:
        raise SystemExit(f"{path} has no column {lacking[0]}; it has {', '.join(header)}")
    columns = [header.index(name) for name in names]
    return [row[0] for row in rows], np.array([[float(row[c]) for c in columns] for row in rows])
