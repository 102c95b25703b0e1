"""Strategies side by side: one space, one budget, one recipe for what they find.

Every strategy searches with every seed; what it found is trained from scratch by the same recipe,
and measured beside all others in one run. Random search always stands beside them. All that is
done is kept in the run's folder: a comparison that was stopped goes on, and trains nothing twice.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deploynas.artifacts import Artifact, Record, ensure_writable
from deploynas.data import ImageDataset
from deploynas.device import Device, StopRule, measure
from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.nn import StaticNetwork
from deploynas.profile import LatencyModel
from deploynas.profile.latency_model import kendall_tau
from deploynas.profile.profiler import write_timed
from deploynas.search import STRATEGIES, Budget, SearchResult
from deploynas.search.darts import DartsRecipe
from deploynas.search.proxyless import ProxylessRecipe
from deploynas.search.result import DataRecord
from deploynas.spaces import ArchRecord, CandidateSpace, CellSpace, SearchSpace
from deploynas.spaces.layers import Node
from deploynas.train import Recipe, pick_device, schedules_for
from deploynas.workflows import gradient, steps
from deploynas.workflows.steps import OnProgress, TrainedSupernet
from deploynas.workflows.trainings import Cost, train_all

GRADIENT = ("proxyless", "darts")
RANDOM = "random"


class Settings(Record):
    """What is compared, and how.

    Attributes:
        strategies: In the order of the table; random search is among them.
        num_seeds: Each strategy searches, and each winner is trained, with seeds 0, 1, ...
        budget: Hard limits.
        num_evaluations: Networks that a strategy without gradients may evaluate in the supernet.
        supernet_epochs: Of the supernet, and of a gradient search; the recipes' own where None.
        recipe: Of every winner, but for its seed.
    """

    strategies: tuple[str, ...]
    num_seeds: int
    budget: Budget
    num_evaluations: int
    supernet_epochs: float | None
    recipe: Recipe


class Winner(Record):
    """What one strategy found with one seed.

    Attributes:
        search_seconds: Of the search, the training of the supernet that it needs included.
        inherited: Validation accuracy with that supernet's weights; None where it needs none.
        validation, test: Accuracy after training from scratch; None where time was up before.
        latency_ms: Measured beside all others; with the bounds of its 95 % interval.
    """

    strategy: str
    seed: int
    architecture: ArchRecord
    search_seconds: float
    predicted_latency_ms: float
    inherited: float | None = None
    validation: float | None = None
    test: float | None = None
    train_seconds: float | None = None
    latency_ms: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None


class Row(Record):
    """One strategy in the table.

    Attributes:
        mean, deviation: Of the test accuracy over the seeds that were trained.
        over_random: Difference of the means; ``interval`` is half of its 95 % interval (Welch),
            None with fewer than two seeds each.
        seconds: Mean cost of a search, the supernet's training included where it needs one.
        latency_ms: Median over the seeds; ``within`` whether none is over the budget.
    """

    strategy: str
    num_trained: int
    mean: float | None
    deviation: float | None
    over_random: float | None
    interval: float | None
    seconds: float
    latency_ms: float | None
    within: bool | None

    @property
    def differs(self) -> bool | None:
        """Whether the difference to random search is larger than its noise."""
        if self.over_random is None or self.interval is None:
            return None
        return abs(self.over_random) > self.interval


class Comparison(Artifact):
    """``comparison.json``. Format 1 (0.1.0): first version.

    Attributes:
        supernet_seconds: Schedule -> seconds of the training of that supernet, which every
            strategy without gradients that goes by it needs.
        kendall_tau: Between inherited and trained validation accuracy of the distinct winners;
            None with fewer than four.
        complete: Whether nothing was left out because time was up.
    """

    SCHEMA = "deploynas-comparison"
    VERSION = 1

    space: dict[str, str | int | list[int]]
    settings: Settings
    data: DataRecord
    profile: str
    device: str
    supernet_seconds: dict[str, float]
    winners: tuple[Winner, ...]
    rows: tuple[Row, ...]
    kendall_tau: float | None
    complete: bool

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "comparison.json"


def strategies_for(space: SearchSpace) -> list[str]:
    """Strategies that a space fits."""
    found = list(STRATEGIES)
    if len(space.resolutions) == 1:
        fits = (isinstance(space, CandidateSpace), isinstance(space, CellSpace))
        found += [name for name, fit in zip(GRADIENT, fits, strict=True) if fit]
    return found


def settings_for(
    space: SearchSpace,
    strategies: Sequence[str],
    *,
    num_seeds: int,
    budget: Budget,
    num_evaluations: int,
    supernet_epochs: float | None,
    recipe: Recipe,
) -> Settings:
    """Check what was asked for; random search is added where it is not named.

    Raises:
        UnknownNameError: No such strategy.
        InvalidInputError: One that the space does not fit, or named twice; a number too small.
    """
    known = [*STRATEGIES, *GRADIENT]
    for name in strategies:
        if name not in known:
            raise UnknownNameError("strategy", name, known)
    fitting = strategies_for(space)
    for name in strategies:
        if name not in fitting:
            raise InvalidInputError(
                f"{space.name} does not fit {name}, which searches "
                f"{'cells' if name == 'darts' else 'candidate operations'} at one resolution",
                f"it fits {', '.join(fitting)}",
            )
    if len(set(strategies)) < len(strategies):
        raise InvalidInputError("a strategy is named twice")
    if num_seeds < 1 or num_evaluations < 4:
        raise InvalidInputError("a comparison needs one seed and four evaluations, or more")
    named = tuple(strategies) if RANDOM in strategies else (RANDOM, *strategies)
    return Settings(
        strategies=named, num_seeds=num_seeds, budget=budget, num_evaluations=num_evaluations,
        supernet_epochs=supernet_epochs, recipe=recipe,
    )  # fmt: skip


def compare(
    space: SearchSpace,
    dataset: ImageDataset,
    profile_path: Path,
    run: Path,
    settings: Settings,
    *,
    device: Device | None,
    num_workers: int = 1,
    max_minutes: float = np.inf,
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> Comparison:
    """Search, train and measure; writes ``run/comparison.json``.

    Args:
        space: Searched by all.
        dataset: Images.
        profile_path: Device profile.
        run: Directory, created; what it holds of the same comparison is not done again.
        settings: What is compared.
        device: The profile's, which measures every winner; None where it is elsewhere.
        num_workers: Trainings at a time, in processes of their own.
        max_minutes: No search and no training begins later.
        on_progress: Called with what is going on and its share done.
        on_note: Called with what a user should know.

    Raises:
        InfeasibleBudgetError: No network keeps the budget.
        InvalidInputError: The folder holds another comparison.
    """
    started = time.monotonic()

    def time_is_up() -> bool:
        return time.monotonic() - started > max_minutes * 60

    ensure_writable(run)
    _require_same(run, space, dataset, settings)
    model = steps.latency_model(space, profile_path, device, "fp32", on_progress)
    settings.budget.require_reachable(model, np.random.default_rng(0))
    on_note(_forecast(model, dataset, settings, num_workers))
    supernets: dict[str, TrainedSupernet] = {}
    supernet_seconds: dict[str, float] = {}
    for name in settings.strategies:
        schedule = _schedule(name, model.space)
        if schedule is not None and schedule not in supernets:
            supernets[schedule], supernet_seconds[schedule] = _supernet(
                model.space, dataset, run / f"supernet-{schedule}", schedule, settings, on_progress
            )
    winners: list[Winner] = []
    todo = [(s, n) for n in range(settings.num_seeds) for s in settings.strategies]
    for number, (strategy, seed) in enumerate(todo):
        folder = run / f"{strategy}-seed{seed}"
        if not SearchResult.file_in(folder).exists() and time_is_up():
            continue

        def told(text: str, share: float, name: str = strategy, done: int = number) -> None:
            on_progress(f"searching: {name}, {text}", (done + share) / len(todo))

        schedule = _schedule(strategy, model.space)
        supernet = None if schedule is None else supernets[schedule]
        result, seconds = _searched(
            strategy, seed, folder, model, dataset, profile_path, settings, supernet, device, told
        )
        inherited = None if supernet is None else result.best.accuracy
        winners.append(
            Winner(
                strategy=strategy, seed=seed, architecture=result.best.architecture,
                search_seconds=seconds + supernet_seconds.get(schedule or "", 0.0),
                inherited=inherited,
                predicted_latency_ms=result.best.predicted_latency_ms or 0.0,
            )
        )  # fmt: skip
    jobs = [
        (w, model.space.layers(model.space.encode([w.architecture])[0]), w.seed) for w in winners
    ]
    trained = train_all(
        [(nodes, settings.recipe.model_copy(update={"seed": seed})) for _, nodes, seed in jobs],
        dataset, run / "trained", num_workers, time_is_up, on_progress,
    )  # fmt: skip
    winners = [
        w.model_copy(
            update={"validation": t.validation, "test": t.test, "train_seconds": t.seconds}
        )
        if t is not None
        else w
        for w, t in zip(winners, trained, strict=True)
    ]
    if device is not None and winners:
        winners = _measured(winners, [nodes for _, nodes, _ in jobs], model, device, on_progress)
    comparison = Comparison.model_validate(
        {
            "space": space.spec,
            "settings": settings,
            "data": steps.data_record(dataset),
            "profile": str(profile_path),
            "device": model.profile.identity.title,
            "supernet_seconds": supernet_seconds,
            "winners": tuple(winners),
            "rows": tuple(rows_of(winners, settings)),
            "kendall_tau": _tau(winners),
            "complete": len(winners) == len(todo) and all(w.test is not None for w in winners),
        }
    )
    comparison.write(Comparison.file_in(run))
    return comparison


def _require_same(
    run: Path, space: SearchSpace, dataset: ImageDataset, settings: Settings
) -> None:
    """Strategies, seeds and recipe may differ from what a folder holds, the rest may not."""
    file = Comparison.file_in(run)
    if not file.exists():
        return
    before = Comparison.read(file)
    same = ("budget", "num_evaluations", "supernet_epochs")
    if (
        before.space != space.spec
        or before.data.fingerprint != dataset.fingerprint
        or any(getattr(before.settings, k) != getattr(settings, k) for k in same)
    ):
        raise InvalidInputError(
            f"{run} holds a comparison of another space, budget, data or number of evaluations",
            "pass another --output",
        )


@contextmanager
def _clocked(folder: Path) -> Iterator[None]:
    """Writes the seconds that the work took; none where it did not end."""
    started = time.monotonic()
    yield
    Cost(seconds=time.monotonic() - started).write(folder / "cost.json")


def _seconds(folder: Path) -> float:
    return Cost.read(folder / "cost.json").seconds


def _schedule(strategy: str, space: SearchSpace) -> str | None:
    """Of the supernet that a strategy searches; None where it trains weights of its own."""
    if strategy in GRADIENT:
        return None
    return "single-path" if strategy == "one-shot" else schedules_for(space)[0]


def _supernet(
    space: SearchSpace,
    dataset: ImageDataset,
    folder: Path,
    schedule: str,
    settings: Settings,
    told: OnProgress,
) -> tuple[TrainedSupernet, float]:
    """The one supernet of a schedule, which several strategies search, and its seconds."""
    if not (folder / "supernet.json").exists() or not (folder / "cost.json").exists():
        recipe = steps.supernet_recipe(space, dataset, settings.supernet_epochs, 0, schedule)
        folder.mkdir(parents=True, exist_ok=True)
        with _clocked(folder):
            steps.train(space, dataset, folder, recipe, told)
    return steps.open_supernet(folder, dataset), _seconds(folder)


def _searched(
    strategy: str,
    seed: int,
    folder: Path,
    model: LatencyModel,
    dataset: ImageDataset,
    profile_path: Path,
    settings: Settings,
    supernet: TrainedSupernet | None,
    device: Device | None,
    told: OnProgress,
) -> tuple[SearchResult, float]:
    """A strategy's result with one seed, of now or of before, and its seconds."""
    file = SearchResult.file_in(folder)
    if file.exists() and (folder / "cost.json").exists():
        return SearchResult.read(file), _seconds(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _clocked(folder):
        if strategy in GRADIENT:
            recipe = _gradient_recipe(strategy, dataset, settings, seed)
            result = gradient.search(
                model.space, dataset, profile_path, settings.budget, folder, recipe,
                device=device, num_evaluations=0, on_progress=told, on_note=lambda text: None,
            )  # fmt: skip
        else:
            assert supernet is not None
            result = steps.search(
                supernet, model, profile_path, settings.budget, folder, device=device,
                strategy=strategy, seed=seed, num_evaluations=settings.num_evaluations,
                beside=False, on_progress=told,
            )  # fmt: skip
    return result, _seconds(folder)


def _gradient_recipe(
    strategy: str, dataset: ImageDataset, settings: Settings, seed: int
) -> ProxylessRecipe | DartsRecipe:
    epochs = settings.supernet_epochs
    if strategy == "darts":
        return gradient.darts_recipe_for(dataset, epochs, seed, {})
    return gradient.recipe_for(dataset, epochs, seed, {})


RULE = StopRule(precision=0.01, min_sessions=4, max_sessions=8)


def _measured(
    winners: list[Winner],
    networks: Sequence[list[Node]],
    model: LatencyModel,
    device: Device,
    on_progress: OnProgress,
) -> list[Winner]:
    """Each winner's latency, all in one run; equal networks are one."""
    with tempfile.TemporaryDirectory(prefix="deploynas-") as folder:
        names = [hashlib.sha256(str(nodes).encode()).hexdigest()[:16] for nodes in networks]
        paths = {
            name: write_timed(Path(folder) / f"{name}.onnx", nodes, model.precision, 0)
            for name, nodes in zip(names, networks, strict=True)
        }
        samples = measure(
            device, paths, RULE, on_progress=lambda p: on_progress("measuring winners", p.done)
        )
    found = []
    for winner, name in zip(winners, names, strict=True):
        x = samples[name].estimate()
        found.append(
            winner.model_copy(
                update={
                    "latency_ms": x.median, "latency_low_ms": x.low, "latency_high_ms": x.high
                }
            )
        )  # fmt: skip
    return found


def rows_of(winners: Sequence[Winner], settings: Settings) -> list[Row]:
    """The table, a row a strategy."""
    base = [w.test for w in winners if w.strategy == RANDOM and w.test is not None]
    limit = settings.budget.latency_ms
    rows = []
    for strategy in settings.strategies:
        own = [w for w in winners if w.strategy == strategy]
        tests = [w.test for w in own if w.test is not None]
        latencies = [w.latency_ms for w in own if w.latency_ms is not None]
        lows = [w.latency_low_ms for w in own if w.latency_low_ms is not None]
        difference, interval = None, None
        if strategy != RANDOM and tests and base:
            difference = float(np.mean(tests) - np.mean(base))
            interval = welch(tests, base)
        rows.append(
            Row(
                strategy=strategy,
                num_trained=len(tests),
                mean=float(np.mean(tests)) if tests else None,
                deviation=float(np.std(tests, ddof=1)) if len(tests) > 1 else None,
                over_random=difference,
                interval=interval,
                seconds=float(np.mean([w.search_seconds for w in own])) if own else 0.0,
                latency_ms=float(np.median(latencies)) if latencies else None,
                within=all(low <= limit for low in lows) if limit and lows else None,
            )
        )
    return rows


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a difference of means (Welch 1947); None with too few."""
    if min(len(first), len(second)) < 2:
        return None
    parts = [float(np.var(x, ddof=1)) / len(x) for x in (first, second)]
    error = sum(parts)
    if error == 0:
        return 0.0
    from scipy import stats

    degrees = error**2 / sum(
        p**2 / (len(x) - 1) for p, x in zip(parts, (first, second), strict=True)
    )
    return float(stats.t.ppf(0.975, degrees) * error**0.5)


def _tau(winners: Sequence[Winner]) -> float | None:
    """Between cheap and full evaluation of the distinct winners, over the mean of their seeds."""
    pairs: dict[str, tuple[float, list[float]]] = {}
    for w in winners:
        if w.inherited is not None and w.validation is not None:
            pairs.setdefault(str(w.architecture), (w.inherited, []))[1].append(w.validation)
    if len(pairs) < 4:
        return None
    cheap, full = zip(*((c, float(np.mean(f))) for c, f in pairs.values()), strict=True)
    return kendall_tau(np.array(cheap), np.array(full))


def _forecast(
    model: LatencyModel, dataset: ImageDataset, settings: Settings, num_workers: int
) -> str:
    """How long it will take where nothing was done before, from a few training steps."""
    speed = _images_per_second(model.space, settings.recipe.batch_size)
    per_network = settings.recipe.epochs * len(dataset.train) / speed
    num_gradient = sum(s in GRADIENT for s in settings.strategies) * settings.num_seeds
    num_sampling = len(settings.strategies) * settings.num_seeds - num_gradient
    seconds = (num_gradient + num_sampling) * per_network / min(num_workers, 1.6)
    if num_sampling:
        recipe = steps.supernet_recipe(model.space, dataset, settings.supernet_epochs, 0)
        num_supernets = len({_schedule(s, model.space) for s in settings.strategies} - {None})
        seconds += (
            num_supernets * 3 * recipe.epochs * len(dataset.train) / speed
        )  # the subnets of a step
        evaluated = min(2_000, len(dataset.val)) + 512
        seconds += num_sampling * settings.num_evaluations * evaluated / (3 * speed)
    if num_gradient:
        (name,) = set(settings.strategies) & set(GRADIENT)
        own = _gradient_recipe(name, dataset, settings, 0)
        seconds += num_gradient * 2 * own.epochs * len(dataset.train) / speed
    return (
        f"about {seconds / 60:.0f} minutes where nothing was done before: "
        f"{num_gradient + num_sampling} searches, and as many trainings of "
        f"{settings.recipe.epochs:g} epochs"
    )


def _images_per_second(space: SearchSpace, batch_size: int) -> float:
    """Of a training step of a network of middling size, measured."""
    drawn = space.sample(200, np.random.default_rng(0))
    arch = drawn[np.argsort(space.macs(drawn), kind="stable")[len(drawn) // 2]]
    nodes = space.layers(arch)
    network = StaticNetwork(nodes).to(pick_device())
    network.to(memory_format=torch.channels_last).train()
    side = nodes[0].layer.height
    x = torch.randn(batch_size, space.in_channels, side, side, device=pick_device())
    labels = torch.zeros(batch_size, dtype=torch.long, device=pick_device())
    times = []
    for _ in range(5):
        started = time.perf_counter()
        loss = nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        times.append(time.perf_counter() - started + 0 * float(loss.detach()))
    return batch_size / float(np.median(times))
