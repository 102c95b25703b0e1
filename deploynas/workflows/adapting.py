"""A trained network of one's own, cut until it keeps its limits, and trained further."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from deploynas.artifacts import Artifact, Record
from deploynas.data import ImageDataset
from deploynas.device import Device, Estimate
from deploynas.errors import InfeasibleBudgetError, InvalidInputError
from deploynas.export.foreign import Origin, proved, write_foreign
from deploynas.nn.adapt import Reading, read
from deploynas.nn.adapt.importance import by_magnitude, by_taylor
from deploynas.nn.adapt.sources import with_classes
from deploynas.nn.adapt.space import AdaptedSpace
from deploynas.nn.state import digest
from deploynas.profile import LatencyModel
from deploynas.profile.whole_networks import WholeLatency, spread_rows
from deploynas.search import Budget, Problem
from deploynas.search.evaluations import Evaluations
from deploynas.search.judging import Judged
from deploynas.search.run import explore
from deploynas.search.sensitivity import STRATEGY, losses_of, one_by_one, packed
from deploynas.search.strategy import Effort
from deploynas.spaces import ArchRecord, Archs, Resolution
from deploynas.train import Recipe
from deploynas.train.adapted import AdaptedEvaluator
from deploynas.train.checkpoint import load_weights, save_weights
from deploynas.train.network import train_module
from deploynas.train.task import task_of
from deploynas.workflows.recipes import for_data
from deploynas.workflows.supernets import told
from deploynas.workflows.target import Tell
from deploynas.workflows.workshop import Workshop

FINE_TUNING = Recipe(epochs=5.0, batch_size=64, learning_rate=0.05)
EVALUATIONS = 200
TAYLOR_IMAGES = 512
# Networks measured before the search, and at which shares of the original's multiply-adds beside
# that of the limit; which share of the limit the search keeps, which is close enough, how often
# what was found is measured, and at which predicted shares.
NUM_FIRST, AROUND = 12, (0.35, 1.3)
AIM, CLOSE, MAX_ROUNDS = 0.98, 0.97, 4
AIMS = (0.955, 0.97, 0.985, 1.0)


@dataclass(frozen=True)
class AdaptPlan:
    """How a network is adapted.

    Attributes:
        source: What names it; see :func:`deploynas.nn.adapt.sources.load_module`.
        budget: Limits.
        evaluations: Networks that are judged.
        importance: ``taylor`` or ``magnitude``: which channels narrower networks keep.
        finetunes: Whether what was found is trained further.
        distils: Whether the original's answers are then half of what is wanted.
        epochs: Of that, where it is not the recipe's own.
        changes: Fields of the recipe -> text.
        beside: Whether the original narrowed uniformly is trained alike, for comparison.
        seed: Of every draw.
    """

    source: str
    budget: Budget
    evaluations: int = EVALUATIONS
    importance: str = "taylor"
    finetunes: bool = True
    distils: bool = False
    epochs: float | None = None
    changes: Mapping[str, str] = field(default_factory=dict)
    beside: bool = False
    seed: int = 0


class AdaptedRow(Record):
    """One network of the table.

    Attributes:
        accuracy: On the validation split, a fraction.
        latency_ms, latency_low_ms, latency_high_ms: Measured on the device.
        macs, params: Exact.
    """

    name: str
    accuracy: float
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    macs: int
    params: int


class Adapted(Artifact):
    """``adapted.json`` of a run. Format 1 (0.1.0): first version.

    Attributes:
        source: What names the network; ``network_digest`` is of its weights.
        budget: Limits.
        architecture: Of what was chosen: every choice by its name.
        rows: The original, what was found before and after it was trained, and the original
            narrowed uniformly within the limits, where that can be.
        predicted_ms, prediction_error: Of what was chosen, by networks measured before it.
        num_evaluations, num_measured: Networks judged, and measured.
        test_accuracy: Of the exported network, on the test split.
        seconds: What each part took, in this process.
    """

    SCHEMA: ClassVar[str] = "deploynas-adapted"
    VERSION: ClassVar[int] = 1
    ANEW: ClassVar[str] = "adapt it again: deploynas adapt"

    source: str
    network_digest: str
    budget: Budget
    architecture: ArchRecord
    rows: tuple[AdaptedRow, ...]
    predicted_ms: float | None
    prediction_error: float | None
    num_evaluations: int
    num_measured: int
    test_accuracy: float | None
    export: str
    seconds: dict[str, float]

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "adapted.json"

    def row(self, name: str) -> AdaptedRow | None:
        """One by its name."""
        return next((one for one in self.rows if one.name == name), None)


def adapt(
    module: nn.Module,
    reading: Reading,
    dataset: ImageDataset,
    device: Device,
    plan: AdaptPlan,
    run: Path,
    folder: Path,
    tell: Tell,
) -> Adapted:
    """Cut a network until it keeps its limits, train it further, export and measure it.

    What was judged, measured and trained is in ``run`` from the moment it is there; the same call
    goes on from it.

    Args:
        module: Trained.
        reading: Of it.
        dataset: Normalised as the network wants it.
        device: Measures.
        plan: How.
        run: Directory.
        folder: Of the export.
        tell: How it goes.

    Raises:
        InfeasibleBudgetError: No network that can be cut out keeps the limits.
        DeviceError, InvalidInputError, ParityError: See their classes.
    """
    clock = _Clock()
    space = _space(reading, dataset, plan)
    evaluator = AdaptedEvaluator(space, dataset)
    workshop = Workshop(space, evaluator.identity, device, run, tell)
    clock.stop("reading")
    with contextlib.closing(workshop.journal):
        problem = _problem(workshop, plan, tell)
        clock.stop("measuring")
        with Evaluations(run, evaluator.identity, space) as kept:
            if kept.damage:
                tell.note(kept.damage)
            judged = Judged(evaluator, kept, plan.evaluations, tell.progress)
            found = _searched(problem, judged, workshop, plan, tell)
        clock.stop("searching")
        rows = [_row(workshop, evaluator, "original", space.largest()[0])]
        uniform = _uniform(problem, workshop)
        if uniform is not None:
            rows.append(_row(workshop, evaluator, "narrowed uniformly", uniform))
        rows.append(_row(workshop, evaluator, "found", found.arch))
        network = evaluator.network(found.arch)
        clock.stop("measuring")
        if plan.finetunes:
            trainer = _Trainer(space, dataset, plan, run, tell, module if plan.distils else None)
            if plan.beside and uniform is not None:
                other = trainer.trained(evaluator.network(uniform), "the uniform one")
                told_of = {"name": "uniform, trained", "accuracy": evaluator.accuracy(other)}
                rows.insert(2, rows[1].model_copy(update=told_of))
            network = trainer.trained(network, "what was found")
            accuracy = evaluator.accuracy(network)
            rows.append(rows[-1].model_copy(update={"name": "trained", "accuracy": accuracy}))
        clock.stop("training")
        proof = proved(network, reading.example, dataset)
        rows[-1] = rows[-1].model_copy(update=_latencies(workshop.took_file(proof.content)))
        result = Adapted(
            source=plan.source, network_digest=digest(module.state_dict()), budget=plan.budget,
            architecture=_named(space, found.arch), rows=tuple(rows),
            predicted_ms=found.predicted_ms, prediction_error=found.prediction_error,
            num_evaluations=found.num_evaluations, num_measured=len(workshop.asked),
            test_accuracy=evaluator.accuracy(network, dataset.test), export=str(folder),
            seconds=clock.seconds,
        )  # fmt: skip
        origin = Origin(device.identity, workshop.level, _facts(result, space))
        write_foreign(proof, dataset, origin, folder)
        clock.stop("exporting")
        result = result.model_copy(update={"seconds": clock.seconds})
        result.write(Adapted.file_in(run))
        return result


def prepared(
    module: nn.Module, resolution: Resolution, dataset: ImageDataset, keep: Sequence[str],
    plan: AdaptPlan, run: Path, tell: Tell,
) -> Reading:  # fmt: skip
    """Read a network, with a new head, trained, where the data has other classes."""
    example = torch.randn(
        (1, dataset.channels, *resolution.size), generator=torch.Generator().manual_seed(0)
    )
    tell.progress("reading the network", 0.0)
    with contextlib.redirect_stdout(sys.stderr):
        is_new = with_classes(module, example, dataset.num_classes)
        if is_new:
            tell.note(
                f"the network has a new head, for {dataset.num_classes} classes, and is trained "
                "before anything is cut"
            )
            _with_trained_head(module, resolution, dataset, plan, run, tell)
        return read(module, example).without(keep)


def _with_trained_head(
    module: nn.Module, resolution: Resolution, dataset: ImageDataset, plan: AdaptPlan, run: Path,
    tell: Tell,
) -> None:  # fmt: skip
    recipe = for_data(FINE_TUNING, dataset, plan.epochs, plan.changes)
    start = f"{digest(module.state_dict())} {dataset.fingerprint} {recipe.model_dump_json()}"
    name = hashlib.sha256(start.encode()).hexdigest()[:16]
    path = run / f"original-{name}.safetensors"
    if path.exists():
        load_weights(path, module)
        module.eval()
        return
    run.mkdir(parents=True, exist_ok=True)
    checkpoint = run / "original-checkpoint.safetensors"
    train_module(
        module, resolution, dataset, recipe, identity="original", checkpoint=checkpoint,
        on_progress=told("training the original with its new head", tell.progress),
    )  # fmt: skip
    save_weights(path, module)
    checkpoint.unlink(missing_ok=True)


def _space(reading: Reading, dataset: ImageDataset, plan: AdaptPlan) -> AdaptedSpace:
    """The choices, channels in the order of their importance."""
    first = AdaptedSpace(reading, source=plan.source)
    if plan.importance == "magnitude":
        order = by_magnitude(reading)
    else:
        examples = AdaptedEvaluator(first, dataset).examples(TAYLOR_IMAGES)
        order = by_taylor(reading, examples, task_of(dataset).loss)
    return AdaptedSpace(reading, order, plan.source)


@dataclass(frozen=True)
class _Found:
    """What a search found.

    Attributes:
        arch: ``(num_choices,)``.
        predicted_ms: Before it was measured; None where no latency is limited.
    """

    arch: Archs
    predicted_ms: float | None
    prediction_error: float | None
    num_evaluations: int


def _row(workshop: Workshop, evaluator: AdaptedEvaluator, name: str, arch: Archs) -> AdaptedRow:
    """A line of the table: measured, and judged with recalibrated batch norms."""
    space = workshop.space
    is_original = bool((arch == space.largest()[0]).all())
    network = space.module(arch) if is_original else evaluator.network(arch)
    return AdaptedRow(
        name=name, accuracy=evaluator.accuracy(network),
        macs=int(space.macs(arch[None])[0]), params=int(space.params(arch[None])[0]),
        **_latencies(workshop.took(arch)),
    )  # fmt: skip


def _latencies(took: Estimate) -> dict[str, float]:
    return {
        "latency_ms": took.median, "latency_low_ms": took.low, "latency_high_ms": took.high,
    }  # fmt: skip


def _problem(workshop: Workshop, plan: AdaptPlan, tell: Tell) -> Problem:
    """The limits, with a latency model of networks that were measured where latency is one."""
    space, limit = workshop.space, plan.budget.latency_ms
    if limit is None:
        model = cast(LatencyModel, SimpleNamespace(space=space))
        problem = Problem(model, plan.budget)
    else:
        rng = np.random.default_rng(plan.seed)
        whole = float(space.macs(space.largest())[0])
        original = workshop.original
        share = min(1.0, limit / original.median)
        rows = spread_rows(
            space, NUM_FIRST, (share * AROUND[0], min(1.0, share * AROUND[1])), whole, rng
        )
        workshop.measured(rows)
        latency = WholeLatency(space, space, workshop.all_measured())
        problem = Problem(cast(LatencyModel, latency), plan.budget)
        tell.note(
            f"{len(workshop.asked)} networks measured: latencies are predicted to "
            f"{latency.half_width:.1%}, the original takes {original.median:.3f} ms"
        )
    if problem.admits(space.largest())[0]:
        raise InvalidInputError(
            "the network keeps the limits as it is",
            "give a lower limit: deploynas check measures what it takes now",
        )
    for name in problem.require_reachable(np.random.default_rng(plan.seed)):
        tell.note(f"the {name} budget does not bind: every network keeps it")
    return problem


def _aimed(problem: Problem, workshop: Workshop, share: float) -> Problem:
    """The same with what was measured since, and latency limited by predictions themselves."""
    limit = problem.budget.latency_ms
    if limit is None:
        return problem
    latency = WholeLatency(workshop.space, workshop.space, workshop.all_measured())
    reached = limit * share * (1 + latency.half_width)
    return Problem(cast(LatencyModel, latency), problem.budget.replaced(latency_ms=reached))


def _searched(
    problem: Problem, judged: Judged, workshop: Workshop, plan: AdaptPlan, tell: Tell
) -> _Found:
    """Search, measure, and come close to the limit."""
    space = workshop.space
    num = max(plan.evaluations, 2 * (1 + len(space.choices)))
    aimed = _aimed(problem, workshop, AIM)
    history = explore(
        STRATEGY, STRATEGY.options(), aimed, judged.scores, np.random.default_rng(plan.seed),
        Effort(num),
    )  # fmt: skip
    limit = problem.budget.latency_ms
    if limit is None:
        return _Found(judged.best(history.archs, 5)[0], None, None, len(history.archs))
    rows, places = one_by_one(space, max(1, int(STRATEGY.options().share * num)))
    losses = losses_of(space, places, judged.scores(rows))
    pool = history.archs
    within: list[tuple[bool, float, Archs, float, float]] = []
    for number in range(MAX_ROUNDS):
        picks = _near(aimed, limit, pool, judged, workshop)
        model = aimed.model
        text = f"{len(picks)} of what was found"
        tell.progress(f"measuring {text}", number / MAX_ROUNDS)
        shares = workshop.measured(picks)
        for pick, told_ms, share in zip(picks, model.predict_ms(picks), shares, strict=True):
            took = share.scaled(workshop.original.median)
            if took.high <= limit:
                score = float(judged.scores(pick[None])[0])
                is_close = took.median >= CLOSE * limit
                within.append((is_close, score, pick, float(told_ms), model.half_width))
        if any(is_close for is_close, *_ in within):
            break
        # what was measured changes predictions: the best are brought to the limit again
        top = pool[np.argsort(-judged.scores(pool), kind="stable")[:4]]
        rng = np.random.default_rng([plan.seed, number])
        tables = losses.shaken(len(top), STRATEGY.options().spread, rng)
        for aim in AIMS:
            aimed = _aimed(problem, workshop, aim)
            pool = np.concatenate([pool, packed(aimed, top, tables)])
        pool = np.unique(pool, axis=0)
    if not within:
        raise InfeasibleBudgetError(
            f"nothing that was found measures within {limit:g} ms",
            "the machine may be busy: try again, or give a higher limit",
        )
    # of those near the limit the best; where none is, the one that leaves least of it
    _, _, arch, told_ms, error = max(
        within, key=lambda one: (one[0], one[1] if one[0] else one[3])
    )
    return _Found(arch, told_ms, error, len(pool))


def _near(aimed: Problem, limit: float, pool: Archs, judged: Judged, workshop: Workshop) -> Archs:
    """What to measure next: the best of what is predicted at each share of the limit."""
    rest = {k: v for k, v in aimed.limits.items() if k != "latency_ms"}
    fresh = np.array([arch.tobytes() not in workshop.asked for arch in pool])
    fitting = pool[fresh & aimed.within(Budget(**rest)).admits(pool)]
    shares = aimed.model.predict_ms(fitting) / limit
    picks: list[Archs] = []
    for low, high in zip((AIMS[0] - 0.015, *AIMS[:-1]), AIMS, strict=True):
        inside = fitting[(shares > low) & (shares <= high)]
        if len(inside):
            picks.append(inside[int(judged.scores(inside).argmax())])
    if not picks and (shares <= 1).any():
        picks.append(fitting[shares <= 1][int(shares[shares <= 1].argmax())])
    return np.stack(picks) if picks else pool[:0]


def _uniform(problem: Problem, workshop: Workshop) -> Archs | None:
    """The original narrowed alike everywhere, within the limits as they are predicted."""
    space, problem = workshop.space, _aimed(problem, workshop, 1.0)
    try:
        row: Archs = space.narrowed(problem.admits)[0]
    except InfeasibleBudgetError:
        return None
    return row


@dataclass(frozen=True)
class _Trainer:
    """Trains what was cut further; from a checkpoint where there is one of the same training."""

    space: AdaptedSpace
    dataset: ImageDataset
    plan: AdaptPlan
    run: Path
    tell: Tell
    teacher: nn.Module | None

    def trained(self, network: nn.Module, what: str) -> nn.Module:
        """The same network, trained, in eval mode."""
        recipe = for_data(FINE_TUNING, self.dataset, self.plan.epochs, self.plan.changes)
        recipe = recipe.model_copy(update={"seed": self.plan.seed})
        start = hashlib.sha256(digest(network.state_dict()).encode()).hexdigest()[:8]
        checkpoint = self.run / f"trained-{start}-checkpoint.safetensors"
        train_module(
            network, self.space.resolutions[0], self.dataset, recipe, identity="adapted",
            teacher=self.teacher, checkpoint=checkpoint,
            on_progress=told(f"training {what}", self.tell.progress),
        )  # fmt: skip
        checkpoint.unlink(missing_ok=True)
        return network.eval()


def _facts(result: Adapted, space: AdaptedSpace) -> dict[str, Any]:
    """What the manifest says of what was found."""
    chosen, limits = result.rows[-1], result.budget.limits
    return {
        "space": space.spec,
        "architecture": result.architecture,
        "predicted_latency_ms": result.predicted_ms,
        "prediction_error": result.prediction_error or 0.0,
        "latency_budget_ms": result.budget.latency_ms,
        "limits": {k: v for k, v in limits.items() if k != "latency_ms"},
        "weights": "fine-tuned" if result.row("trained") else "inherited",
        "accuracy": chosen.accuracy,
        "macs": chosen.macs,
        "params": chosen.params,
    }


def _named(space: AdaptedSpace, arch: Archs) -> dict[str, Any]:
    return {k: v for k, v in space.decode(arch[None])[0].items() if k != "resolution"}


class _Clock:
    """Seconds of parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def stop(self, name: str) -> None:
        """The part that ends now."""
        now = time.monotonic()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._last, 1)
        self._last = now
