"""Weights that a gradient strategy learns together with the architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deploynas.artifacts import Artifact, unchanged
from deploynas.data import ImageDataset
from deploynas.errors import InfeasibleBudgetError
from deploynas.nn import WeightSharing
from deploynas.report.probabilities import draw_probabilities
from deploynas.search import Budget, Plan, Problem, SearchResult
from deploynas.search.discretise import Decision
from deploynas.search.gradient import (
    GradientRecipe,
    HistoryPoint,
    Learned,
    Learner,
    require_splittable,
)
from deploynas.search.result import DecisionRecord
from deploynas.search.strategy import Gradient
from deploynas.spaces import Archs, SearchSpace
from deploynas.train import ScalarLog, SupernetEvaluator, pick_device
from deploynas.train.distributed import is_first, wait
from deploynas.train.evaluate import CALIBRATION_IMAGES
from deploynas.workflows.search import Opened
from deploynas.workflows.supernets import data_record, told
from deploynas.workflows.target import Tell
from deploynas.workflows.trainings import images_per_second

NUM_EVALUATIONS = 24  # of the random search beside it


def _weights_apart(document: dict[str, Any]) -> dict[str, Any]:
    """Whether weights are shared became an option of the architecture."""
    recipe = dict(document["recipe"])
    if "share_weights" in recipe:
        own = {**recipe["architecture"], "share_weights": recipe.pop("share_weights")}
        recipe["architecture"] = own
    return document | {"recipe": recipe}


class GradientRecord(Artifact):
    """``gradient.json``: how a gradient search went.

    Format 1: first version; 2 (0.1.0): the recipe is of any gradient strategy; 3: a digest.

    Attributes:
        blocks: Name and candidates of every choice, in the order of the probabilities.
    """

    SCHEMA = "deploynas-gradient-search"
    VERSION = 3
    ANEW = "search again: deploynas search"
    MIGRATIONS = {1: _weights_apart, 2: unchanged}

    recipe: dict[str, Any]
    budget: Budget
    blocks: tuple[tuple[str, tuple[str, ...]], ...]
    history: tuple[HistoryPoint, ...]

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "gradient.json"


class PathEvaluator(SupernetEvaluator):
    """Accuracy of what a gradient search's network holds.

    The canonical form of an architecture moves blocks within a stage; what a search decided is
    judged, and kept, with the weights of the blocks where it learned them.
    """

    def __init__(self, network: WeightSharing, dataset: ImageDataset) -> None:
        super().__init__(network, dataset)
        self._decided: dict[bytes, Archs] = {}

    def add(self, decided: Archs) -> Archs:
        """Keep where the blocks of a decision are; returns its canonical row."""
        row: Archs = self._supernet.space.canonical(decided[None])[0]
        self._decided.setdefault(row.tobytes(), decided)
        return row

    def _own(self, arch: Archs) -> Archs:
        return self._decided.get(arch.tobytes(), arch)


class Learning:
    """Weights and architecture in turn.

    Args:
        space: At one resolution.
        dataset: Images.
        strategy: Learns.
        recipe: How.

    Raises:
        InvalidInputError: The data is too small to hold images out of, or an option is not of
            this space.
    """

    num_evaluations, at_once, beside, in_processes = NUM_EVALUATIONS, 1, True, True
    more_seconds = 0.0

    def __init__(
        self, space: SearchSpace, dataset: ImageDataset, strategy: Gradient, recipe: GradientRecipe
    ) -> None:
        self.space, self._dataset = space, dataset
        self._strategy, self._recipe = strategy, recipe
        strategy.require_fit(space)
        require_splittable(dataset)

    @property
    def data(self) -> str:
        """Fingerprint of the images."""
        return self._dataset.fingerprint

    @property
    def identity(self) -> str:
        """The recipe."""
        return f"learned {self._recipe.model_dump_json()}"

    def forecast(self, space: SearchSpace, plan: Plan) -> float:
        """From a few training steps."""
        speed = images_per_second(space, self._recipe.batch_size)
        passes = self._recipe.epochs * len(self._dataset.train)
        return self._strategy.step_cost(space) * passes / speed

    def open(self, problem: Problem, plan: Plan, run: Path, tell: Tell) -> Opened:
        """Learn; what is found for less of a limit is decided when it is asked for."""
        torch.manual_seed(self._recipe.seed)
        checkpoint = run / "gradient-checkpoint.safetensors"
        learner = self._strategy.learner(problem.space, self._recipe)
        learner.network.to(pick_device())
        with ScalarLog(run / "tensorboard" if is_first() else None) as log:
            learned = learner.learn(
                self._dataset, problem, checkpoint=checkpoint,
                on_progress=told("searching", tell.progress, log),
            )  # fmt: skip
        wait()
        evaluator = PathEvaluator(learner.network, self._dataset)  # type: ignore[arg-type]
        decisions = _Decisions(learner, learned, problem, evaluator)

        def finish(result: SearchResult, arch: Archs) -> SearchResult:
            own = _record(problem.space, decisions.of(arch), learned.history[-1])
            return result.model_copy(update={"decision": own})

        def saved(arch: Archs) -> None:
            record = GradientRecord(
                recipe=self._recipe.model_dump(mode="json"), budget=problem.budget,
                blocks=tuple(learner.blocks), history=learned.history,
            )  # fmt: skip
            record.write(GradientRecord.file_in(run))
            checkpoint.unlink(missing_ok=True)
            for text in learner.notes(arch):
                tell.note(text)
            _draw(record, run / "probabilities.png", tell.note)

        return Opened(
            evaluator, evaluator.extract, data_record(self._dataset), "paths", run,
            num_images=min(CALIBRATION_IMAGES, len(self._dataset.train)), decide=decisions,
            finish=finish, saved=saved,
        )  # fmt: skip


class _Decisions:
    """What the learned probabilities say for shares of the limits on latency."""

    def __init__(
        self, learner: Learner, learned: Learned, problem: Problem, evaluator: PathEvaluator
    ) -> None:
        self._learner, self._learned = learner, learned
        self._problem, self._evaluator = problem, evaluator
        self._taken: list[Decision] = []

    def __call__(self, share: float) -> Archs | None:
        """Row of the decision; None where no network keeps so little."""
        decision = self._learned.decision
        if share != 1:
            tighter = self._problem.tightened(share)
            try:
                decision = self._learner.decide(self._learned.probabilities, tighter)
            except InfeasibleBudgetError:
                return None
        self._taken.append(decision)
        return self._evaluator.add(decision.arch)

    def of(self, arch: Archs) -> Decision:
        """The decision for a row; that for the whole limits where another search found it."""
        space = self._problem.space
        same = (d for d in self._taken if (space.canonical(d.arch[None])[0] == arch).all())
        return next(same, self._taken[0])


def _record(space: SearchSpace, decision: Decision, end: HistoryPoint) -> DecisionRecord:
    (free,) = space.decode(space.canonical(decision.free_arch[None]))
    return DecisionRecord.model_validate(
        {
            "log_probability": decision.log_probability,
            "kept_log_probability": decision.kept_log_probability,
            "free_log_probability": decision.free_log_probability,
            "free_architecture": free,
            "num_changed": decision.num_changed,
            "num_raised": decision.num_raised,
            "is_exact": decision.is_exact,
            "expected": end.expected,
            "entropy": end.entropy,
        }
    )


def _draw(record: GradientRecord, path: Path, on_note: Callable[[str], None]) -> None:
    try:
        draw_probabilities(record.blocks, record.history, path)
    except ModuleNotFoundError:
        on_note("no picture of the probabilities: pip install 'deploynas[report]'")
