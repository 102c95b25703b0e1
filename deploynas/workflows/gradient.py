"""Searches by gradients from images and a profile to a network: learn, decide, measure, save."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import torch

from deploynas.artifacts import Artifact, ensure_writable
from deploynas.data import ImageDataset
from deploynas.device import Device
from deploynas.errors import (
    InfeasibleBudgetError,
    InvalidInputError,
    UnknownNameError,
    require_positive,
)
from deploynas.nn import MixedBlocks, MixedCells, MixedNetwork, WeightSharing, mixture_of
from deploynas.profile import LatencyModel
from deploynas.profile.device_profile import Precision
from deploynas.report.probabilities import draw_probabilities
from deploynas.search import Budget, SearchResult, cells, darts, proxyless
from deploynas.search import search as run_search
from deploynas.search.architecture import LatencyLoss, Update
from deploynas.search.darts import DartsRecipe
from deploynas.search.discretise import Decision, discretise
from deploynas.search.gradient import GradientRecipe, HistoryPoint, Learned, require_splittable
from deploynas.search.proxyless import ProxylessRecipe
from deploynas.search.result import DecisionRecord
from deploynas.spaces import Archs, SearchSpace
from deploynas.train import ScalarLog, SupernetEvaluator, TrainingProgress, pick_device
from deploynas.train.distributed import first_alone, is_first, processes, wait
from deploynas.train.evaluate import CALIBRATION_IMAGES
from deploynas.workflows.networks import save_chosen
from deploynas.workflows.steps import (
    MIN_STEPS,
    OnProgress,
    as_result,
    data_record,
    job_of,
    latency_model,
    measured_by,
    told,
)

NUM_EVALUATIONS = 24  # of the random search beside it


class GradientRecord(Artifact):
    """``gradient.json``: how a gradient search went. Format 1 (0.1.0): first version.

    Attributes:
        blocks: Name and candidates of every choice, in the order of the probabilities.
    """

    SCHEMA = "deploynas-gradient-search"
    VERSION = 1

    recipe: ProxylessRecipe | DartsRecipe
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


def recipe_for(
    dataset: ImageDataset,
    epochs: float | None,
    seed: int,
    changes: Mapping[str, object],
    *,
    share_weights: bool = True,
) -> ProxylessRecipe:
    """The recipe; 10 passes, or more over a small data set, where ``epochs`` is None.

    Args:
        dataset: Its train split's length counts.
        epochs: Passes.
        seed: Of every draw.
        changes: Of the architecture's recipe.
        share_weights: Whether candidates of a block share weights.

    Raises:
        UnknownNameError: No such update or latency loss.
        InvalidInputError: A number that cannot be, or a weight of the adaptive loss, which has
            none.
    """
    for what, kind in (("update", Update), ("latency_loss", LatencyLoss)):
        if what in changes and changes[what] not in get_args(kind):
            raise UnknownNameError(what.replace("_", " "), str(changes[what]), get_args(kind))
    if "latency_weight" in changes:
        weight = changes["latency_weight"]
        if not isinstance(weight, float) or not math.isfinite(weight) or weight < 0:
            raise InvalidInputError(f"--latency-weight is 0 or more, got {weight}")
        if changes.get("latency_loss", "adaptive") == "adaptive":
            raise InvalidInputError(
                "--latency-weight goes with --latency-loss sum or product: the adaptive one finds "
                "its own"
            )
    recipe = ProxylessRecipe.model_validate(
        {"seed": seed, "architecture": changes, "share_weights": share_weights}
    )
    return _lengthened(recipe, dataset, epochs)


def darts_recipe_for(
    dataset: ImageDataset, epochs: float | None, seed: int, changes: Mapping[str, object]
) -> DartsRecipe:
    """The recipe of DARTS; see :func:`recipe_for`.

    Raises:
        UnknownNameError: No such order or gate.
        InvalidInputError: A number that cannot be.
    """
    for name, known in (("order", ("first", "second")), ("gate", ("softmax", "sigmoid"))):
        if name in changes and changes[name] not in known:
            raise UnknownNameError(name, str(changes[name]), known)
    prune, skips = changes.get("prune", 0.0), changes.get("max_skips", 0)
    if not (isinstance(prune, float) and 0 <= prune < 1):
        raise InvalidInputError(f"--prune is a share, 0 to less than 1, got {prune}")
    if not (isinstance(skips, int) and skips >= 0):
        raise InvalidInputError(f"--max-skips is 0 or more, got {skips}")
    recipe = DartsRecipe.model_validate({"seed": seed, "architecture": changes})
    return _lengthened(recipe, dataset, epochs)


R = TypeVar("R", bound=GradientRecipe)


def _lengthened(recipe: R, dataset: ImageDataset, epochs: float | None) -> R:
    if epochs is not None:
        return recipe.model_copy(update={"epochs": require_positive(epochs, "--epochs")})
    held = 1 - recipe.held_out
    least = 4 * MIN_STEPS * recipe.batch_size / (held * len(dataset.train))
    return recipe.model_copy(update={"epochs": round(max(recipe.epochs, min(least, 200)), 1)})


@dataclass
class _Proxyless:
    """What is ProxylessNAS's own."""

    network: MixedNetwork
    recipe: ProxylessRecipe
    strategy = "proxyless"

    def learn(
        self, dataset: ImageDataset, model: LatencyModel, budget: Budget, checkpoint: Path,
        on_progress: Callable[[TrainingProgress], None],
    ) -> Learned:  # fmt: skip
        return proxyless.learn(
            self.network, dataset, model, budget, self.recipe, checkpoint=checkpoint,
            on_progress=on_progress,
        )  # fmt: skip

    def decide(self, learned: Learned, model: LatencyModel, budget: Budget) -> Decision:
        rng = np.random.default_rng([self.recipe.seed, 10])
        return discretise(self.network, learned.probabilities, model, budget, rng)

    @property
    def blocks(self) -> list[tuple[str, tuple[str, ...]]]:
        return _blocks_of(self.network)

    def warnings(self, best: Archs) -> list[str]:
        return []


@dataclass
class _Darts:
    """What is DARTS's own."""

    network: MixedCells | MixedBlocks
    recipe: DartsRecipe
    strategy = "darts"

    def learn(
        self, dataset: ImageDataset, model: LatencyModel, budget: Budget, checkpoint: Path,
        on_progress: Callable[[TrainingProgress], None],
    ) -> Learned:  # fmt: skip
        return darts.learn(
            self.network, dataset, model, budget, self.recipe, checkpoint=checkpoint,
            on_progress=on_progress,
        )  # fmt: skip

    def decide(self, learned: Learned, model: LatencyModel, budget: Budget) -> Decision:
        return darts.decision(self.network, learned.probabilities, model, budget, self.recipe)

    @property
    def blocks(self) -> list[tuple[str, tuple[str, ...]]]:
        return self.network.row_names

    def warnings(self, best: Archs) -> list[str]:
        skips = self.network.num_skips(best)
        if skips <= cells.COLLAPSED:
            return []
        return [
            f"the normal cell has {skips} skip connections: DARTS is known to collapse like that; "
            "--gate sigmoid, --prune 0.5 or --max-skips 2 counter it"
        ]


def _blocks_of(network: MixedNetwork) -> list[tuple[str, tuple[str, ...]]]:
    choices = [network.space.choices[layer.column] for layer in network.mixed]
    return [(choice.name, tuple(map(str, choice.options))) for choice in choices]


def _side(space: SearchSpace, recipe: ProxylessRecipe | DartsRecipe) -> _Proxyless | _Darts:
    """The network and what belongs to its strategy.

    Raises:
        InvalidInputError: The space does not fit.
    """
    if isinstance(recipe, ProxylessRecipe):
        network = MixedNetwork(space, shared=recipe.share_weights)
        return _Proxyless(network.to(pick_device()), recipe)
    mixed = mixture_of(space).to(pick_device())
    if recipe.architecture.max_skips is not None and not mixed.has_skips:
        raise InvalidInputError(f"--max-skips is of cells, and {space.name} has none")
    return _Darts(mixed, recipe)


def search(
    chosen: SearchSpace,
    dataset: ImageDataset,
    profile_path: Path,
    budget: Budget,
    run: Path,
    recipe: ProxylessRecipe | DartsRecipe,
    *,
    device: Device | None,
    num_evaluations: int,
    precision: Precision = "fp32",
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> SearchResult:
    """Learn weights and architecture together; writes the run's files.

    Under ``torchrun`` the processes learn together, then all but the first end.

    Args:
        chosen: The space, at one resolution.
        dataset: Images.
        profile_path: Device profile.
        budget: Hard limits.
        run: Directory, created: ``search.json``, ``chosen.safetensors``, ``gradient.json``, a
            picture of the probabilities where matplotlib is installed.
        recipe: How to learn.
        device: The profile's, which measures what was decided; None where it is elsewhere.
        num_evaluations: Of the random search beside it, under the same weights, whose best
            network is taken where it is the more accurate one; 0: none.
        precision: Of the latencies.
        on_progress: Called with what is going on and its share done.
        on_note: Called with what a user should know.

    Raises:
        InfeasibleBudgetError: No network keeps the budget.
        InvalidInputError: The space's choices are not candidate operations, the data is too
            small, or a checkpoint is another search's.
        DivergedError: The loss is not finite; the last checkpoint is kept.
        SystemExit: This is not the first process, and its work is done.
    """
    checkpoint = run / "gradient-checkpoint.safetensors"
    with processes():
        torch.manual_seed(recipe.seed)
        side = _side(chosen, recipe)
        require_splittable(dataset)
        with first_alone() as goes_first:  # it may add layers to the profile
            model = latency_model(
                chosen, profile_path, device if goes_first else None, precision, on_progress
            )
            budget.require_reachable(model, np.random.default_rng(recipe.seed))
            if goes_first:
                ensure_writable(run)
        with ScalarLog(run / "tensorboard" if goes_first else None) as log:
            learned = side.learn(
                dataset, model, budget, checkpoint, told("searching", on_progress, log)
            )
        wait()
    if not is_first():
        raise SystemExit(0)
    decisions: list[Decision] = []
    evaluator = PathEvaluator(side.network, dataset)

    def decide(share: float) -> Archs | None:
        """Row of the decision for a share of the latency budget; None where none keeps it."""
        decision = learned.decision
        if share != 1 and budget.latency_ms is not None:
            other = budget.model_copy(update={"latency_ms": budget.latency_ms * share})
            try:
                decision = side.decide(learned, model, other)
            except InfeasibleBudgetError:
                return None
        decisions.append(decision)
        return evaluator.add(decision.arch)

    outcome = run_search(
        model,
        evaluator,
        budget,
        strategy=side.strategy,
        seed=recipe.seed,
        num_evaluations=num_evaluations,
        measure_ms=measured_by(device, evaluator.extract, precision),
        decide=decide,
        beside=num_evaluations > 0,
        keep_in=run,
        on_progress=on_progress,
    )
    best = chosen.encode([outcome.best.architecture])[0]
    # where a network beside the search was more accurate, what the search itself decided stands
    same = (d for d in decisions if (chosen.canonical(d.arch[None])[0] == best).all())
    taken = next(same, decisions[0])
    job = job_of(
        model, dataset, budget, side.strategy, recipe.model_dump_json(), recipe.seed,
        num_evaluations, device,
    )  # fmt: skip
    result = as_result(
        outcome, model, profile_path, job,
        inputs=[profile_path], data=data_record(dataset), supernet=run, weights="paths",
        decision=_record(chosen, taken, learned.history[-1]),
    )  # fmt: skip
    num_images = min(CALIBRATION_IMAGES, len(dataset.train))
    save_chosen(run, result, evaluator.extract(best), num_images=num_images)
    record = GradientRecord(
        recipe=recipe,
        budget=budget,
        blocks=tuple(side.blocks),
        history=learned.history,
    )
    record.write(GradientRecord.file_in(run))
    checkpoint.unlink(missing_ok=True)
    for text in side.warnings(best):
        on_note(text)
    _draw(record, run / "probabilities.png", on_note)
    return result


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
