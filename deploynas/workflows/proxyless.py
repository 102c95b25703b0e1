"""ProxylessNAS from images and a profile to a network: learn, decide, measure, save."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

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
from deploynas.nn import MixedNetwork
from deploynas.profile.device_profile import Precision
from deploynas.report.probabilities import draw_probabilities
from deploynas.search import Budget, SearchResult
from deploynas.search import search as run_search
from deploynas.search.architecture import LatencyLoss, Update
from deploynas.search.discretise import Decision, discretise
from deploynas.search.gradient import HistoryPoint, require_splittable
from deploynas.search.proxyless import ProxylessRecipe, learn
from deploynas.search.result import DecisionRecord
from deploynas.spaces import Archs, SearchSpace
from deploynas.train import ScalarLog, SupernetEvaluator, pick_device
from deploynas.train.evaluate import CALIBRATION_IMAGES
from deploynas.workflows.networks import save_chosen
from deploynas.workflows.steps import (
    MIN_STEPS,
    OnProgress,
    as_result,
    data_record,
    latency_model,
    measured_by,
    told,
)

NUM_EVALUATIONS = 24  # of the random search beside it


class ProxylessRecord(Artifact):
    """``proxyless.json``: how a gradient search went. Format 1 (0.1.0): first version.

    Attributes:
        blocks: Name and candidates of every choice, in the order of the probabilities.
    """

    SCHEMA = "deploynas-proxyless"
    VERSION = 1

    recipe: ProxylessRecipe
    budget: Budget
    blocks: tuple[tuple[str, tuple[str, ...]], ...]
    history: tuple[HistoryPoint, ...]

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "proxyless.json"


class PathEvaluator(SupernetEvaluator):
    """Accuracy of a mixed network's paths.

    The canonical form of an architecture moves blocks within a stage; what a search decided is
    judged, and kept, with the weights of the blocks where it learned them.
    """

    def __init__(self, network: MixedNetwork, dataset: ImageDataset) -> None:
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
    if epochs is not None:
        return recipe.model_copy(update={"epochs": require_positive(epochs, "--epochs")})
    held = 1 - recipe.held_out
    least = 4 * MIN_STEPS * recipe.batch_size / (held * len(dataset.train))
    return recipe.model_copy(update={"epochs": round(max(recipe.epochs, min(least, 200)), 1)})


def search(
    chosen: SearchSpace,
    dataset: ImageDataset,
    profile_path: Path,
    budget: Budget,
    run: Path,
    recipe: ProxylessRecipe,
    *,
    device: Device | None,
    num_evaluations: int,
    precision: Precision = "fp32",
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> SearchResult:
    """Learn weights and architecture together; writes the run's files.

    Args:
        chosen: The space, at one resolution.
        dataset: Images.
        profile_path: Device profile.
        budget: Hard limits.
        run: Directory, created: ``search.json``, ``chosen.safetensors``, ``proxyless.json``, a
            picture of the probabilities where matplotlib is installed.
        recipe: How to learn.
        device: The profile's, which measures what was decided; None where it is elsewhere.
        num_evaluations: Of the random search beside it, under the same weights; 0: none.
        precision: Of the latencies.
        on_progress: Called with what is going on and its share done.
        on_note: Called with what a user should know.

    Raises:
        InfeasibleBudgetError: No network keeps the budget.
        InvalidInputError: The space's choices are not candidate operations, the data is too
            small, or a checkpoint is another search's.
        DivergedError: The loss is not finite; the last checkpoint is kept.
    """
    torch.manual_seed(recipe.seed)
    network = MixedNetwork(chosen, shared=recipe.share_weights).to(pick_device())
    require_splittable(dataset)
    model = latency_model(chosen, profile_path, device, precision, on_progress)
    budget.require_reachable(model, np.random.default_rng(recipe.seed))
    ensure_writable(run)
    checkpoint = run / "proxyless-checkpoint.safetensors"
    with ScalarLog(run / "tensorboard") as log:
        learned = learn(
            network, dataset, model, budget, recipe, checkpoint=checkpoint,
            on_progress=told("searching", on_progress, log),
        )  # fmt: skip
    decisions: list[Decision] = []
    evaluator = PathEvaluator(network, dataset)

    def decide(share: float) -> Archs | None:
        """Row of the decision for a share of the latency budget; None where none keeps it."""
        decision = learned.decision
        if share < 1 and budget.latency_ms is not None:
            smaller = budget.model_copy(update={"latency_ms": budget.latency_ms * share})
            rng = np.random.default_rng([recipe.seed, 10])
            try:
                decision = discretise(network, learned.probabilities, model, smaller, rng)
            except InfeasibleBudgetError:
                return None
        decisions.append(decision)
        return evaluator.add(decision.arch)

    outcome = run_search(
        model,
        evaluator,
        budget,
        strategy="proxyless",
        seed=recipe.seed,
        num_evaluations=num_evaluations,
        measure_ms=measured_by(device, evaluator.extract, precision),
        decide=decide,
        beside_random=num_evaluations > 0,
        on_progress=on_progress,
    )
    best = chosen.encode([outcome.best.architecture])[0]
    taken = next(d for d in decisions if (chosen.canonical(d.arch[None])[0] == best).all())
    result = as_result(
        outcome, model, profile_path, budget, strategy="proxyless", seed=recipe.seed,
        inputs=[profile_path], data=data_record(dataset), supernet=run, weights="paths",
        decision=_record(chosen, taken, learned.history[-1]),
    )  # fmt: skip
    result.write(SearchResult.file_in(run))
    num_images = min(CALIBRATION_IMAGES, len(dataset.train))
    save_chosen(run, evaluator.extract(best), num_images=num_images)
    record = ProxylessRecord(
        recipe=recipe,
        budget=budget,
        blocks=tuple(
            (choice.name, tuple(str(option) for option in choice.options))
            for choice in (chosen.choices[layer.column] for layer in network.mixed)
        ),
        history=learned.history,
    )
    record.write(ProxylessRecord.file_in(run))
    checkpoint.unlink(missing_ok=True)
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


def _draw(record: ProxylessRecord, path: Path, on_note: Callable[[str], None]) -> None:
    try:
        draw_probabilities(record.blocks, record.history, path)
    except ModuleNotFoundError:
        on_note("no picture of the probabilities: pip install 'deploynas[report]'")
