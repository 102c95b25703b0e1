"""The demo: a network specialised for this very machine, beside four others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from deploynas.artifacts import (
    EXPORTS,
    PROFILES,
    RUNS,
    Artifact,
    ensure_writable,
    exists,
    unchanged,
)
from deploynas.check import CheckResult, Examples, check
from deploynas.data import ImageDataset, space_for
from deploynas.device import LocalDevice
from deploynas.errors import require_positive
from deploynas.nn import supernet_of
from deploynas.profile import LatencyModel, profile_space
from deploynas.search import Budget, Candidate, Effort, Plan
from deploynas.search.strategies.ofa import STRATEGY as OFA
from deploynas.train import SupernetRecipe, pick_device
from deploynas.train.distributed import require_one_process
from deploynas.train.evaluate import QUICK_CALIBRATION, QUICK_IMAGES
from deploynas.train.supernet import supernet_images_per_second
from deploynas.workflows.chosen import inherited
from deploynas.workflows.exporting import export
from deploynas.workflows.inherited import Inherited
from deploynas.workflows.recipes import FINE_TUNING
from deploynas.workflows.retraining import retrain
from deploynas.workflows.search import search
from deploynas.workflows.supernets import CHECKPOINT, SupernetRecord, open_supernet, train
from deploynas.workflows.target import OnProgress, Target, Tell
from deploynas.workflows.trainings import images_per_second

BUDGET_SHARE = 0.35  # of the way from the smallest to the largest network's latency
MINUTES = 8.0
PROFILE_SHARE = 0.1  # of the minutes, in which measuring ends once it is precise
SUPERNET_SHARE = 0.45  # of what the profile and the checks leave
SEARCH_SHARE = 0.3  # of what is left then
NUM_EVALUATIONS = (12, 72)  # of a search, at least and at most
NUM_UNIFORM = 40  # evaluations beside it, about
EXTRACT_SECONDS = 0.05  # of a network out of the supernet
CHECK_SECONDS = 14.0  # of an export and its check
LEAST_IMAGES, MOST_EPOCHS = 4_000, 40.0  # of a training
TITLES = ("chosen", "random search", "best uniform", "largest", "smallest")
ENDS = ("largest", "smallest")


class DemoPlan(Artifact):
    """How a demo trains its supernet, as decided when it began: it goes on by it.

    Format 1: first version; 2 (0.1.0): a digest.

    Attributes:
        data: Fingerprint of the images.
        minutes, epochs, seed: As they were asked for.
        settings: As many passes as fitted.
    """

    SCHEMA: ClassVar[str] = "deploynas-demo-plan"
    VERSION: ClassVar[int] = 2
    ANEW: ClassVar[str] = "delete it: the demo begins anew"
    MIGRATIONS = {1: unchanged}

    data: str
    minutes: float
    epochs: float | None
    seed: int
    settings: SupernetRecipe

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "demo.json"


@dataclass(frozen=True)
class Row:
    """One network of the table."""

    title: str
    candidate: Candidate
    result: CheckResult
    folder: Path

    @property
    def off(self) -> float:
        """Measured at the prediction's clock speed against predicted, relative."""
        measured = self.result.latency_normalised or self.result.latency
        return measured.median / self.predicted_ms - 1

    @property
    def predicted_ms(self) -> float:
        """By the search."""
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
            "off: measured at the prediction's clock speed, against predicted",
            "",
            f"{self.minutes:.1f} minutes; the chosen network is {best.folder / 'model.onnx'}",
            f"next: deploynas check {best.folder}",
        ]
        return lines


@dataclass(frozen=True)
class _Time:
    """What is left of the demo's minutes, and what fits into it.

    Attributes:
        deadline: Of the monotonic clock.
        dataset: Trained on.
        evaluation_seconds: Of a network in the search's loop, about.
    """

    deadline: float
    dataset: ImageDataset
    evaluation_seconds: float

    @property
    def for_training(self) -> float:
        """Seconds that the checks at the end leave."""
        return self.deadline - time.monotonic() - len(TITLES) * CHECK_SECONDS

    def epochs(self, seconds: float, images_per_second: float, most: float) -> float:
        """Passes over the train split that fit into some seconds; a few steps in any case."""
        num_images = len(self.dataset.train)
        fitting = seconds * images_per_second / num_images
        return round(float(np.clip(fitting, LEAST_IMAGES / num_images, most)), 2)

    @property
    def num_evaluations(self) -> int:
        """Networks that a search, and the random search beside it, evaluate in its share."""
        seconds = SEARCH_SHARE * max(0.0, self.for_training)
        fitting = int(seconds / self.evaluation_seconds - NUM_UNIFORM) // 2
        return int(np.clip(fitting, *NUM_EVALUATIONS))


def run_demo(
    dataset: ImageDataset,
    *,
    minutes: float = MINUTES,
    epochs: float | None = None,
    seed: int = 0,
    on_progress: OnProgress,
    on_note: Callable[[str], None] = lambda text: None,
) -> DemoTable:
    """Profile, train, search, retrain, export and check; a second run reuses the supernet.

    The contenders (chosen, random search, best uniform) are trained further, all by one recipe;
    the ends of the space keep the supernet's weights.

    Args:
        dataset: Images.
        minutes: That it may take in all: it trains and searches as much as fits on this machine.
        epochs: Of the supernet, whatever that takes; as many as fit where None.
        seed: Of everything.
        on_progress: Called with what is going on and its share done.
        on_note: Called with what a user should know.
    """
    require_one_process("demo")
    started = time.monotonic()
    deadline = started + 60 * require_positive(minutes, "--minutes")
    if epochs is not None:
        require_positive(epochs, "--epochs")
    device = LocalDevice()
    path = PROFILES / "cpu.json"
    chosen = space_for("mobile-small", dataset)
    profile, _ = profile_space(
        chosen, device, path, soft_seconds=PROFILE_SHARE * 60 * minutes, on_progress=on_progress
    )
    model = LatencyModel(chosen, profile)
    budget = Budget(latency_ms=_binding_budget(model))
    run = RUNS / f"demo-{dataset.name}"
    flip = dataset.name != "digits"
    on_progress("measuring how fast this machine trains", 0.0)
    alone = images_per_second(chosen, FINE_TUNING.batch_size)
    evaluated = min(QUICK_IMAGES, len(dataset.val)) + QUICK_CALIBRATION
    left = _Time(deadline, dataset, evaluated / (3 * alone) + EXTRACT_SECONDS)
    if exists(SupernetRecord.file_in(run)):
        supernet = open_supernet(run, dataset)
        settings = SupernetRecord.read(SupernetRecord.file_in(run)).settings
        on_note(
            f"supernet {run}, trained before in {settings.epochs:g} passes over the images (seed "
            f"{settings.seed}); delete the folder to train another"
        )
    else:
        recipe = SupernetRecipe(seed=seed, flip=flip)
        speed = supernet_images_per_second(supernet_of(chosen).to(pick_device()), dataset, recipe)
        own = epochs or left.epochs(SUPERNET_SHARE * left.for_training, speed, MOST_EPOCHS)
        plan_now = DemoPlan(
            data=dataset.fingerprint, minutes=minutes, epochs=epochs, seed=seed,
            settings=recipe.model_copy(update={"epochs": own}),
        )  # fmt: skip
        going = begun(run, plan_now)
        on_note(
            f"this machine trains {speed:.0f} images/s of a supernet and {alone:.0f} of a single "
            f"network: {going.settings.epochs:g} passes over the images for the supernet"
            + ("" if epochs else f", so that all takes about {minutes:g} minutes")
        )
        supernet = train(chosen, dataset, run, going.settings, on_progress)
    source = Inherited(chosen, dataset, run, None)
    plan = Plan(OFA, OFA.options(), seed, Effort(left.num_evaluations))
    result = search(budget, plan, source, Target(path, device), run, Tell(on_progress))
    found = (
        result.best, result.random_best, result.uniform_best, result.largest, result.smallest
    )  # fmt: skip
    contenders = dict(zip(TITLES, found, strict=True))
    trained_further = {
        str(c.architecture) for title, c in contenders.items() if c and title not in ENDS
    }
    seconds = left.for_training / len(trained_further)
    fitting = left.epochs(seconds, alone, MOST_EPOCHS)
    fine_tuning = FINE_TUNING.model_copy(update={"seed": seed, "flip": flip, "epochs": fitting})
    on_note(f"{fitting:g} passes over the images for each network that is trained further")
    examples = Examples.of(dataset, None)
    rows: list[Row] = []
    for title, candidate in contenders.items():
        if candidate is None:
            continue
        same = [row for row in rows if row.candidate.architecture == candidate.architecture]
        if same and title not in ENDS:
            rows.append(replace(same[0], title=title))
            continue
        trained = inherited(result, candidate, supernet)
        if title not in ENDS:
            trained = retrain(trained, dataset, fine_tuning, on_progress)
        folder = EXPORTS / f"demo-{title.replace(' ', '-')}"
        export(result, trained, folder)
        judged = check(folder, device, examples=examples, on_progress=on_progress)
        rows.append(Row(title, candidate, judged, folder))
    taken = (time.monotonic() - started) / 60
    return DemoTable(dataset.name, budget.latency_ms or 0.0, rows, taken)


def begun(run: Path, plan: DemoPlan) -> DemoPlan:
    """The plan of a demo that was interrupted, where the same was asked for; else this one."""
    path = DemoPlan.file_in(run)
    if exists(path) and exists(run / CHECKPOINT):
        before = DemoPlan.read(path)
        if before.model_copy(update={"settings": plan.settings}) == plan:
            return before
    ensure_writable(run)
    (run / CHECKPOINT).unlink(missing_ok=True)  # of another
    plan.write(path)
    return plan


def _binding_budget(model: LatencyModel) -> float:
    """A latency between the smallest and the dearest network's."""
    space = model.space
    low, high = model.predict_ms(np.concatenate([space.smallest(), space.largest()]))
    high = max(high, model.predict_ms(space.uniform()).max())
    return round(float(low + BUDGET_SHARE * (high - low)), 3)
