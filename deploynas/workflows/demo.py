"""The demo: a network specialised for this very machine, beside four others."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploynas.artifacts import EXPORTS, PROFILES, RUNS
from deploynas.check import CheckResult, Examples, check
from deploynas.data import ImageDataset, space_for
from deploynas.device import CpuDevice
from deploynas.profile import LatencyModel, profile_space
from deploynas.search import Budget, Candidate
from deploynas.train import SupernetRecipe
from deploynas.workflows import networks, steps
from deploynas.workflows.steps import OnProgress

BUDGET_SHARE = 0.35  # of the way from the smallest to the largest network's latency
NUM_EVALUATIONS = 72
SOFT_SECONDS = 50.0  # of measuring: the demo as a whole takes less than ten minutes
ENDS = ("largest", "smallest")


@dataclass(frozen=True)
class Row:
    """One network of the table."""

    title: str
    candidate: Candidate
    result: CheckResult
    folder: Path

    @property
    def off(self) -> float:
        """Measured at the profile's clock speed against predicted, relative."""
        measured = self.result.latency_normalised or self.result.latency
        return measured.median / self.predicted_ms - 1

    @property
    def predicted_ms(self) -> float:
        """By the profile, at its own clock speed."""
        assert self.candidate.predicted_latency_ms is not None
        return self.candidate.predicted_latency_ms


@dataclass(frozen=True)
class DemoTable:
    """What the demo ends with."""

    dataset: str
    budget_ms: float
    rows: list[Row]
    minutes: float

    def document(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "dataset": self.dataset,
            "budget_ms": self.budget_ms,
            "minutes": self.minutes,
            "networks": [
                {
                    "name": row.title,
                    "accuracy": row.result.accuracy,
                    "supernet_accuracy": row.candidate.accuracy,
                    "predicted_latency_ms": row.predicted_ms,
                    "latency_ms": row.result.latency.median,
                    "off": row.off,
                    "macs": row.candidate.macs,
                    "verdict": row.result.verdict,
                    "path": str(row.folder),
                }
                for row in self.rows
            ],
        }

    def lines(self) -> list[str]:
        """For people."""
        head = (
            f"{'network':15}{'supernet':>10}{'test':>9}{'predicted':>12}{'measured':>22}"
            f"{'off':>7}{'M MACs':>8}  verdict"
        )
        lines = [f"{self.dataset}, budget {self.budget_ms:.3f} ms on this machine", "", head]
        for row in self.rows:
            x = row.result.latency
            measured = f"{x.median:.3f} ({x.low:.3f}-{x.high:.3f})"
            lines.append(
                f"{row.title:15}{row.candidate.accuracy:>10.2%}{row.result.accuracy or 0:>9.2%}"
                f"{row.predicted_ms:>9.3f} ms{measured:>22}"
                f"{row.off:>+7.1%}{row.candidate.macs / 1e6:>8.2f}  {row.result.verdict}"
            )
        best = self.rows[0]
        lines += [
            "",
            "supernet: validation accuracy with the supernet's weights, which the search went by;",
            "test: of the exported file, its weights trained further (the ends: as they are)",
            "off: measured at the profile's clock speed, against predicted",
            "",
            f"{self.minutes:.1f} minutes; the chosen network is {best.folder / 'model.onnx'}",
            f"next: deploynas check {best.folder}",
        ]
        return lines


def run_demo(
    dataset: ImageDataset, *, epochs: float, seed: int, on_progress: OnProgress
) -> DemoTable:
    """Profile, train, search, retrain, export and check; a second run reuses the supernet.

    The contenders (chosen, random search, best uniform) are trained further, all by one recipe;
    the ends of the space keep the supernet's weights.
    """
    started = time.monotonic()
    device = CpuDevice()
    path = PROFILES / "cpu.json"
    chosen = space_for("mobile-small", dataset)
    profile, _ = profile_space(
        chosen, device, path, soft_seconds=SOFT_SECONDS, on_progress=on_progress
    )
    model = LatencyModel(chosen, profile)
    budget = Budget(latency_ms=_binding_budget(model))
    run = RUNS / f"demo-{dataset.name}"
    flip = dataset.name != "digits"
    if (run / "supernet.json").exists():
        supernet = steps.open_supernet(run, dataset)
    else:
        recipe = SupernetRecipe(epochs=epochs, seed=seed, flip=flip)
        recipe = recipe.model_copy(update=steps.lengthened(recipe, dataset))
        supernet = steps.train(chosen, dataset, run, recipe, on_progress)
    result = steps.search(
        supernet, model, path, budget, run, device=device, strategy="ofa", seed=seed,
        num_evaluations=NUM_EVALUATIONS, on_progress=on_progress,
    )  # fmt: skip
    contenders = {
        "chosen": result.best,
        "random search": result.random_best,
        "best uniform": result.uniform_best,
        "largest": result.largest,
        "smallest": result.smallest,
    }
    longer = steps.lengthened(networks.FINE_TUNING, dataset)
    fine_tuning = networks.FINE_TUNING.model_copy(update={"seed": seed, "flip": flip, **longer})
    examples = Examples.of(dataset, None)
    rows: list[Row] = []
    for title, candidate in contenders.items():
        if candidate is None:
            continue
        same = [row for row in rows if row.candidate.architecture == candidate.architecture]
        if same and title not in ENDS:
            rows.append(replace(same[0], title=title))
            continue
        trained = networks.inherited(result, candidate, supernet)
        if title not in ENDS:
            trained = networks.retrain(trained, dataset, fine_tuning, on_progress)
        folder = EXPORTS / f"demo-{title.replace(' ', '-')}"
        networks.export(result, trained, folder)
        judged = check(folder, device, examples=examples, on_progress=on_progress)
        rows.append(Row(title, candidate, judged, folder))
    minutes = (time.monotonic() - started) / 60
    return DemoTable(dataset.name, budget.latency_ms or 0.0, rows, minutes)


def _binding_budget(model: LatencyModel) -> float:
    """A latency between the smallest and the dearest network's."""
    space = model.space
    low, high = model.predict_ms(np.concatenate([space.smallest(), space.largest()]))
    high = max(high, model.predict_ms(space.uniform()).max())
    return round(float(low + BUDGET_SHARE * (high - low)), 3)
