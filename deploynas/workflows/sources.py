"""Which weights a search goes by: what its strategy needs, else what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploynas.artifacts import exists
from deploynas.data import ImageDataset
from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.search.strategy import STRATEGIES, Strategy
from deploynas.spaces import SearchSpace
from deploynas.train import Recipe, SupernetRecipe
from deploynas.workflows.candidates import Candidates, TrainedCandidates
from deploynas.workflows.executor import ALONE, Workers
from deploynas.workflows.gradient import Learning
from deploynas.workflows.inherited import Inherited
from deploynas.workflows.recipes import FROM_SCRATCH, for_data, supernet_recipe
from deploynas.workflows.search import Source
from deploynas.workflows.supernets import SupernetRecord
from deploynas.workflows.target import Tell

EVALUATORS = ("inherited", "training", "halving")
LONGER = 3.0  # epochs of what one-shot retrains, over those of its supernet


@dataclass(frozen=True)
class Training:
    """How a search trains.

    Attributes:
        seed: Of every draw.
        epochs: Of whatever it trains; those of the recipe where None.
        changes: Fields of its recipe -> text.
        evaluator: What judges a candidate, of :data:`EVALUATORS`.
        workers: How many networks are trained or evaluated at a time, and where.
        supernet: Run of one that was trained before.

    Raises:
        UnknownNameError: No such evaluator.
    """

    seed: int = 0
    epochs: float | None = None
    changes: Mapping[str, str] = field(default_factory=dict)
    evaluator: str = "inherited"
    workers: Workers = ALONE
    supernet: Path | None = None

    def __post_init__(self) -> None:
        if self.evaluator not in EVALUATORS:
            raise UnknownNameError("evaluator", self.evaluator, EVALUATORS)

    def require_fit(self, strategy: Strategy) -> None:
        """Check that a strategy can be had so.

        Raises:
            InvalidInputError: It trains weights of its own, and others were named.
        """
        is_trained = self.evaluator != "inherited"
        if is_trained and (strategy.weights != "any" or self.supernet):
            any_weights = [n for n, one in STRATEGIES.all().items() if one.weights == "any"]
            raise InvalidInputError(
                f"--evaluator {self.evaluator} trains every candidate: it goes with "
                f"{', '.join(any_weights)}, without a supernet"
            )
        if self.supernet and strategy.weights != "any":
            raise InvalidInputError(
                f"{strategy.name} trains its own weights: leave out the others'"
            )
        if self.workers.num > 1 and strategy.weights == "own":
            raise InvalidInputError(
                f"--workers is of networks that are evaluated, and {strategy.name} learns",
                "start it by torchrun",
            )


def source_of(
    strategy: Strategy,
    options: Any,
    space: SearchSpace,
    dataset: ImageDataset,
    how: Training,
    run: Path,
    tell: Tell,
) -> Source:
    """Where the weights of a search come from.

    Args:
        strategy: Of the search.
        options: Its own.
        space: Searched.
        dataset: Images.
        how: They are trained.
        run: Of the search: what it trains is kept there.
        tell: How trainings from scratch go.
    """
    make: dict[str, Callable[[], Source]] = {
        "own": lambda: _learning(strategy, options, space, dataset, how),
        "single-path": lambda: _single_path(space, dataset, how, run, tell),
        "any": lambda: _asked_for(space, dataset, how, run),
    }
    how.require_fit(strategy)
    strategy.require_fit(space)
    return make[strategy.weights]()


def _learning(
    strategy: Any, options: Any, space: SearchSpace, dataset: ImageDataset, how: Training
) -> Learning:
    recipe = for_data(strategy.recipe(options, how.seed), dataset, how.epochs, how.changes)
    return Learning(space, dataset, strategy, recipe)


def _single_path(
    space: SearchSpace, dataset: ImageDataset, how: Training, run: Path, tell: Tell
) -> Inherited:
    recipe = supernet_recipe(space, dataset, how.epochs, how.seed, "single-path", how.changes)
    longer = None if how.epochs is None else LONGER * how.epochs
    known = {k: v for k, v in how.changes.items() if k in Recipe.model_fields and k != "epochs"}
    alone = for_data(FROM_SCRATCH.model_copy(update={"seed": how.seed}), dataset, longer, known)
    trained = TrainedCandidates(
        space, dataset, alone, run / "trained", workers=how.workers, on_progress=tell.progress
    )  # fmt: skip
    return Inherited(space, dataset, run, recipe, retrained=trained, workers=how.workers)


def _asked_for(space: SearchSpace, dataset: ImageDataset, how: Training, run: Path) -> Source:
    if how.evaluator != "inherited":
        base = FROM_SCRATCH.model_copy(update={"seed": how.seed})
        recipe = for_data(base, dataset, how.epochs, how.changes)
        halving = how.evaluator == "halving"
        return Candidates(space, dataset, recipe, halving=halving, workers=how.workers)
    if how.supernet is not None:
        return Inherited(space, dataset, how.supernet, None, workers=how.workers)
    asked: SupernetRecipe | None = supernet_recipe(
        space, dataset, how.epochs, how.seed, None, how.changes
    )
    if exists(SupernetRecord.file_in(run)) and how.epochs is None and not how.changes:
        asked = None  # whatever it was trained by
    return Inherited(space, dataset, run, asked, workers=how.workers)
