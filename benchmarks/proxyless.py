"""ProxylessNAS: are its gradients right, is a step cheap, does the budget hold, is it any good?

python benchmarks/proxyless.py gradients                    [--json]
python benchmarks/proxyless.py step        [--space S] [--resolution R] [--batch-size N]
python benchmarks/proxyless.py budgets     --data DIR [--device cpu|web] [--images N] [--epochs N]
python benchmarks/proxyless.py comparison  --data DIR [--device cpu|web] [--images N] [--epochs N]
                                           [--standalone-epochs N] [--share S] [--minutes M]
                                           [--workers N]
python benchmarks/proxyless.py devices     --data DIR [--images N] [--epochs N] [--workers N]
                                           [--standalone-epochs N] [--share S] [--web-share S]
gradients   of gates, expected latency and REINFORCE on a toy space, against finite differences
            and sums over every network.
step        time and memory of a weight step over those of the static network of the same path.
budgets     five searches across the space's range of latencies; each result is measured anew.
comparison  at one latency, all trained from scratch by one recipe, three seeds: what the search
            found, random networks, the best of random search with the same compute (networks
            trained alone, judged by validation images), and MobileNetV2 and V3 scaled to the
            same latency. Accuracies are of test images.
devices     three searches for cpu and three for web, what they found trained from scratch and
            measured on both. The budget on web is --web-share of what the networks found for cpu
            are predicted to take there, so that both can be equally accurate.
--images trains on so many images. Everything trained is kept in benchmarks/runs/proxyless, so that
a run that was stopped goes on; --minutes stops it in time and prints what there is. --workers
trains so many networks at a time, each on its share of the cores; compute is counted in seconds of
a processor.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from peak import grown_bytes, median_of_children
from scipy import stats
from torch import nn

import deploynas as dn
from deploynas.check.verdict import measure_bytes
from deploynas.data import ImageDataset, load_dataset, space_for
from deploynas.device import Device, Samples, StopRule, measure, open_device
from deploynas.export.exporter import network_bytes
from deploynas.graph import RandomWeights, write_model
from deploynas.nn import MixedNetwork, build
from deploynas.profile import LatencyModel, profile_space
from deploynas.search import Budget, Effort, Plan, SearchResult
from deploynas.search.gates import AdditiveCost, gate_gradients, score, softmax_gradient
from deploynas.search.strategies.proxyless import STRATEGY as PROXYLESS
from deploynas.spaces import CandidateSpace, Node
from deploynas.spaces.staged import Stage, StageTable
from deploynas.train import Recipe
from deploynas.workflows.gradient import Learning
from deploynas.workflows.recipes import for_data
from deploynas.workflows.search import search
from deploynas.workflows.target import Target, Tell
from deploynas.workflows.trainings import Trained, key_of, train_alone

RUNS = Path(__file__).parent / "runs" / "proxyless"
PROFILES = Path(__file__).parent / "profiles"
PARTS = ("gradients", "step", "budgets", "comparison", "devices")
SEEDS = (0, 1, 2)
BUDGET_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the range, in logarithms
BAND = 0.03  # of equal latency
WIDTHS = np.arange(0.25, 2.05, 0.125)  # of a MobileNet's stages, in one to three blocks each
POOL = 40  # random networks that are measured, so that enough lie within the band


def main() -> None:
    """Print one part's table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two budgets, one seed, few steps")
    parser.add_argument("--space", default="proxyless-small")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=None)
    parser.add_argument("--epochs", type=float, default=30.0)
    parser.add_argument("--standalone-epochs", type=float, default=12.0)
    parser.add_argument("--share", type=float, default=0.45, help="of the range of latencies")
    parser.add_argument("--web-share", type=float, default=0.97)
    parser.add_argument("--minutes", type=float, default=np.inf)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--peak-of", choices=("static", "mixed"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(peak_bytes(options))
        return
    if options.part in ("budgets", "comparison", "devices") and options.data is None:
        parser.error("this part needs --data")
    document = globals()[options.part](options)
    if options.json:
        print(json.dumps(document))
        return
    for key, value in document.items():
        print(f"{key:34} {value:.4g}" if isinstance(value, float) else f"{key:34} {value}")


class Stopwatch:
    """Processor seconds of a work that may be stopped and gone on with, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._last, self._written = path, time.process_time(), 0.0
        self.seconds = float(path.read_text()) if path.exists() else 0.0

    def tick(self) -> None:
        """Called while the work goes on."""
        now = time.process_time()
        self.seconds, self._last = self.seconds + now - self._last, now
        if now - self._written > 10:
            self._path.write_text(str(self.seconds))
            self._written = now


# gradients


def gradients(options: argparse.Namespace) -> dict[str, object]:
    """Relative errors, and the largest deviation of REINFORCE in its own standard errors."""
    table = replace(
        dn.space("proxyless-small").table,
        stages=(Stage(16, 2, "relu", False, (1, 2)), Stage(24, 2, "h_swish", True, (1, 2))),
        head_width=32,
        head_features=0,
    )
    space = CandidateSpace("toy", table, num_classes=3, in_channels=1, resolutions=[16])
    torch.manual_seed(0)
    network = MixedNetwork(space).double()
    for part in network.modules():  # a residual branch starts at zero, where no gate matters
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
    rng = np.random.default_rng(0)
    x, labels = torch.randn(16, 1, 16, 16).double(), torch.randint(3, (16,))
    errors = []
    for _ in range(20):
        pairs = [rng.permutation(len(a))[:2] for a in network.alphas]
        active, other = (network.row([int(p[i]) for p in pairs]) for i in (0, 1))

        def forward(gates: torch.Tensor, a: np.ndarray = active, o: np.ndarray = other):
            return network.forward_gated(x, a, o, gates)

        _, found = gate_gradients(forward, labels, len(pairs))
        by_differences = np.zeros_like(found)
        for index in np.ndindex(*found.shape):
            ends = []
            for step in (1e-7, -1e-7):
                gates = torch.zeros(len(pairs), 2).double()
                gates[:, 0] = 1.0
                gates[index] += step
                with torch.no_grad():
                    ends.append(float(nn.functional.cross_entropy(forward(gates), labels)))
            by_differences[index] = (ends[0] - ends[1]) / 2e-7
        shares = [rng.dirichlet(np.ones(2)) for _ in pairs]
        a = np.stack([softmax_gradient(q, g) for q, g in zip(shares, found, strict=True)])
        b = np.stack([_algebra(q, g) for q, g in zip(shares, by_differences, strict=True)])
        errors.append(np.abs(a - b).max() / np.abs(b).max())
    costs = [rng.random(len(a)) for a in network.alphas]
    alphas = [torch.from_numpy(rng.normal(size=len(c))).requires_grad_() for c in costs]
    cost = AdditiveCost("latency_ms", 1.0, 0.3, tuple(costs))
    (expected := cost.expected([a.softmax(0) for a in alphas])).backward()
    p = [a.detach().softmax(0).numpy() for a in alphas]
    every = list(itertools.product(*(range(len(c)) for c in costs)))
    weights = np.array([np.prod([q[o] for q, o in zip(p, row, strict=True)]) for row in every])
    totals = np.array([cost.of(row) for row in every])
    exact = [_of_expectation(p, every, weights, totals, block) for block in range(len(p))]
    got = [a.grad.numpy() for a in alphas]
    latency_error = max(
        np.abs(g - e).max() / np.abs(e).max() for g, e in zip(got, exact, strict=True)
    )
    rewards = rng.normal(size=len(every))
    exact = [_of_expectation(p, every, weights, rewards, block) for block in range(len(p))]
    drawn = rng.choice(len(every), size=40_000, p=weights / weights.sum())
    deviations = []
    for block, q in enumerate(p):
        samples = np.stack([rewards[i] * score(q, every[i][block]) for i in drawn])
        standard = samples.std(axis=0) / np.sqrt(len(samples))
        deviations.append(np.abs(samples.mean(axis=0) - exact[block]) / standard)
    return {
        "gates_relative_error": float(max(errors)),
        "expected_latency_error": abs(float(expected.detach()) / float(weights @ totals) - 1),
        "latency_gradient_relative_error": float(latency_error),
        "reinforce_standard_errors_rms": float(np.sqrt(np.mean(np.concatenate(deviations) ** 2))),
        "reinforce_standard_errors_worst": float(np.concatenate(deviations).max()),
    }


def _algebra(q: np.ndarray, gates: np.ndarray) -> np.ndarray:
    """Equation 4 term by term, as it is written."""
    return np.array(
        [sum(gates[j] * q[j] * ((i == j) - q[i]) for j in range(len(q))) for i in range(len(q))]
    )


def _of_expectation(
    p: Sequence[np.ndarray], every: list, weights: np.ndarray, values: np.ndarray, block: int
) -> np.ndarray:
    """D E[value] / d alpha of one block, by a sum over every network."""
    options = np.array([row[block] for row in every])
    return np.array(
        [
            float((weights * values * ((options == i) - p[block][i])).sum())
            for i in range(len(p[block]))
        ]
    )


# a step


def step(options: argparse.Namespace) -> dict[str, object]:
    """Ratios of medians; a path is drawn each round, and both train it."""
    space = dn.space(options.space, resolutions=[options.resolution])
    rng = np.random.default_rng(0)
    x_bchw, labels = _batch(options, space)
    mixed = MixedNetwork(space).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(mixed.weights, 0.01, momentum=0.9, nesterov=True)
    ratios = []
    for _ in range(4 if options.quick else 25):
        arch = mixed.row([int(rng.integers(len(a))) for a in mixed.alphas])
        static = build(space, arch).to(memory_format=torch.channels_last).train()
        own = torch.optim.SGD(static.parameters(), 0.01, momentum=0.9, nesterov=True)
        ways = (
            lambda a=arch: _train(mixed, optimizer, lambda: mixed(x_bchw, a), labels),
            lambda s=static, o=own: _train(s, o, lambda: s(x_bchw), labels),
        )
        times = []
        for way in ways:
            way()  # the first touch of a shape prepares it
        for turn in range(4):
            for number in (0, 1) if turn % 2 else (1, 0):
                start = time.perf_counter()
                ways[number]()
                times.append((number, time.perf_counter() - start))
        medians = [np.median([t for n, t in times if n == number]) for number in (0, 1)]
        ratios.append(medians[0] / medians[1])
    num = 1 if options.quick else 5
    peaks = {way: median_of_children("--peak-of", way, num) for way in ("static", "mixed")}
    spread = np.quantile(ratios, [0.25, 0.75])
    return {
        "space": f"{options.space} at {options.resolution} px, batch {options.batch_size}",
        "time_over_static": float(np.median(ratios)),
        "time_quartiles": f"{spread[0]:.3f}-{spread[1]:.3f}",
        "memory_over_static": peaks["mixed"] / peaks["static"],
        "static_peak_mb": peaks["static"] / 1e6,
    }


def peak_bytes(options: argparse.Namespace) -> int:
    """What this process grows by over three weight steps; parameters are there before."""
    space = dn.space(options.space, resolutions=[options.resolution])
    x_bchw, labels = _batch(options, space)
    torch.manual_seed(0)
    mixed = MixedNetwork(space)
    rng = np.random.default_rng(0)
    arch = mixed.row([int(rng.integers(len(a))) for a in mixed.alphas])
    is_static = options.peak_of == "static"
    module: nn.Module = build(space, arch) if is_static else mixed
    module.to(memory_format=torch.channels_last).train()
    nn.Conv2d(3, 8, 3)(torch.randn(1, 3, 9, 9)).sum().backward()  # what the first one loads

    def train() -> None:
        for _ in range(3):
            module.zero_grad(set_to_none=True)
            logits = module(x_bchw) if is_static else module(x_bchw, arch)
            nn.functional.cross_entropy(logits, labels).backward()

    return grown_bytes(train)


def _batch(options: argparse.Namespace, space: CandidateSpace) -> tuple:
    shape = (options.batch_size, space.in_channels, options.resolution, options.resolution)
    x_bchw = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    return x_bchw, torch.randint(space.num_classes, (options.batch_size,))


def _train(
    module: nn.Module, optimizer: torch.optim.Optimizer, forward: Callable, labels: torch.Tensor
) -> None:
    module.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(forward(), labels).backward()
    optimizer.step()


# budgets


def _prepared(options: argparse.Namespace, name: str | None = None) -> tuple:
    dataset = load_dataset(options.data).with_fewer(options.images)
    space = space_for("proxyless-small", dataset)
    name = name or options.device
    device = open_device(name, 1)
    path = PROFILES / f"{name}-t1.json"
    profile, _ = profile_space(space, device, path)
    return dataset, space, device, path, LatencyModel(space, profile)


def budget_at(model: LatencyModel, share: float) -> float:
    """A latency so far into the space's range, in logarithms."""
    low, high = model.upper_ms(np.concatenate([model.space.smallest(), model.space.largest()]))
    return float(np.exp(np.log(low) + share * (np.log(high) - np.log(low))))


def searched(
    dataset: ImageDataset,
    space: CandidateSpace,
    profile_path: Path,
    epochs: float,
    latency_ms: float,
    seed: int,
    device: Device | None = None,
) -> tuple[SearchResult, float]:
    """One search, now or before, and its seconds; without a device its prediction decides."""
    recipe = for_data(PROXYLESS.recipe(PROXYLESS.options(), seed), dataset, epochs)
    name = _key(
        profile_path.name, dataset.fingerprint, recipe.model_dump_json(), f"{latency_ms:.6f}",
        "measured" if device else "predicted",
    )  # fmt: skip
    run = RUNS / f"search-{name}"
    if not SearchResult.file_in(run).exists():
        run.mkdir(parents=True, exist_ok=True)
        watch = Stopwatch(run / "seconds")
        search(
            Budget(latency_ms=latency_ms), Plan(PROXYLESS, recipe.architecture, seed, Effort(4)),
            Learning(space, dataset, PROXYLESS, recipe), Target(profile_path, device), run,
            Tell(lambda text, share: watch.tick()),
        )  # fmt: skip
    return SearchResult.read(SearchResult.file_in(run)), float((run / "seconds").read_text())


def budgets(options: argparse.Namespace) -> dict[str, object]:
    """Measured over budget, raw and at the profile's level of the machine."""
    dataset, space, device, path, model = _prepared(options)
    document: dict[str, object] = {"device": options.device, "stated_error": model.half_width}
    for share in BUDGET_SHARES[:2] if options.quick else BUDGET_SHARES:
        limit = budget_at(model, share)
        # the budget is part of the search's key: the profile is kept, so that it is the same
        result, _ = searched(dataset, space, path, options.epochs, limit, 0, device)
        arch = space.encode([result.best.architecture])
        samples = measure_bytes(device, network_bytes(build(space, arch[0]).eval()))
        raw, level = samples.estimate(), samples.estimate(model.profile.reference)
        expected = result.decision.expected["latency_ms"] / limit if result.decision else np.nan
        document[f"{limit:.4f} ms"] = (
            f"measured {raw.median / limit:.3f} of it (+-{raw.half_width:.1%}), at the profile's "
            f"level {level.median / limit:.3f}; expected {expected:.3f}, predicted "
            f"{(result.best.predicted_latency_ms or np.nan) / limit:.3f}"
        )
    return document


# comparison


def comparison(options: argparse.Namespace) -> dict[str, object]:
    """Test accuracies at equal measured latency, with 95 % intervals over networks and seeds.

    Searches first; then everything that is to be compared is measured in one run, and what lies
    within :data:`BAND` of the found networks' median latency is trained.
    """
    started = time.monotonic()
    dataset, space, device, path, model = _prepared(options)
    recipe = Recipe(epochs=options.standalone_epochs, batch_size=64)
    limit = budget_at(model, options.share)
    seeds = SEEDS[:1] if options.quick else SEEDS
    threads = max(1, torch.get_num_threads() // options.workers)
    with (
        ProcessPoolExecutor(
            options.workers, get_context("spawn"), torch.set_num_threads, (threads,)
        ) as pool,
        ThreadPoolExecutor(len(seeds)) as seeds_at_once,
    ):
        searches = [
            pool.submit(searched, dataset, space, path, options.epochs, limit, seed)
            for seed in seeds
        ]
        results, seconds = zip(*(one.result() for one in searches), strict=True)
        archs = space.encode([result.best.architecture for result in results])
        own = [space.layers(arch) for arch in archs]
        field = Field.measured(archs, device, model)
        found: list[float] = []
        baselines: dict[str, list[float]] = {name: [] for name in field.scaled}
        mean_random: list[float] = []
        best_random: list[float] = []

        def run_seed(seed: int) -> None:
            """Appends to the lists above; a list's items need not be in the order of the seeds."""

            def trained(nodes: list[Node]) -> tuple[float, float, float]:
                if time.monotonic() - started > options.minutes * 60:
                    raise _OutOfTimeError
                own_recipe = recipe.model_copy(update={"seed": seed})
                return pool.submit(standalone, nodes, dataset, own_recipe).result()

            found.append(trained(own[seed])[1])
            at_random: list[tuple[float, float, float]] = []
            for nodes in field.random[seed :: len(seeds)]:  # each seed's random search has its own
                at_random.append(trained(nodes))
                mean_random.append(at_random[-1][1])
                if sum(one[2] for one in at_random) >= seconds[seed]:
                    break
            best_random.append(max(at_random)[1])
            for name, nodes in field.scaled.items():
                baselines[name].append(trained(nodes)[1])

        for one in [seeds_at_once.submit(run_seed, seed) for seed in seeds]:
            try:
                one.result()
            except _OutOfTimeError:
                continue
    document: dict[str, object] = {
        "device": options.device,
        "budget_ms": limit,
        "found_over_budget": " ".join(f"{ms / limit:.3f}" for ms in field.found_ms),
        "compared_at_ms": field.target_ms,
        "random_within_band": f"{len(field.random)} of {field.num_random}",
        "train_images": len(dataset.train),
        "search_epochs": options.epochs,
        "standalone_epochs": options.standalone_epochs,
        "search_processor_seconds": float(np.mean(seconds)),
        "random_networks": len(mean_random),
        "found": interval(found),
        "random_mean": interval(mean_random),
        "random_search": interval(best_random),
        **{f"MobileNet{name}_scaled": interval(v) for name, v in baselines.items()},
    }
    others = {
        "random_mean": mean_random,
        "random_search": best_random,
        "better_scaled": max(baselines.values(), key=lambda v: np.mean(v) if v else 0.0),
    }
    document |= {f"over_{k}": difference(found, v) for k, v in others.items() if found and v}
    document["minutes_now"] = (time.monotonic() - started) / 60
    return document


@dataclass(frozen=True)
class Field:
    """What found networks are compared with, all of it measured beside them in one run.

    Attributes:
        target_ms: Median latency of the found networks.
        found_ms: Of each.
        random: Networks drawn uniformly that take as long as that, within :data:`BAND`.
        num_random: Drawn networks that were predicted to, and were measured.
        scaled: MobileNetV2 and V3, scaled by width and depth to that latency.
    """

    target_ms: float
    found_ms: list[float]
    random: list[list[Node]]
    num_random: int
    scaled: dict[str, list[Node]]

    @classmethod
    def measured(cls, archs: np.ndarray, device: Device, model: LatencyModel) -> Field:
        """Measure, or take the latencies that a run before this one measured.

        Args:
            archs: Those found.
            device: The model's.
            model: Of their space.
        """
        space = model.space
        assert isinstance(space, CandidateSpace)
        found = [space.layers(arch) for arch in archs]
        drawn = space.sample(100_000, np.random.default_rng(50_001))
        centre = float(np.median(model.predict_ms(archs)))
        near = np.abs(model.predict_ms(drawn) / centre - 1) <= BAND
        pool = [space.layers(arch) for arch in drawn[near][:POOL]]
        families = {name: _scalings(name, space, WIDTHS) for name in ("V2", "V3")}
        every = [*found, *pool, *(nodes for f in families.values() for _, _, nodes in f)]
        times = iter(_kept_ms(every, device, model))
        found_ms = [next(times) for _ in found]
        target = float(np.median(found_ms))
        random_ms = [next(times) for _ in pool]
        scaled = {}
        for name, family in families.items():
            ratios = [next(times) / target for _ in family]
            if min(abs(r - 1) for r in ratios) > BAND:  # finer, between the two nearest
                ends = [
                    (family[i][1], family[i + 1][1])
                    for i in range(len(family) - 1)
                    if family[i][0] == family[i + 1][0] == 2 and ratios[i] < 1 < ratios[i + 1]
                ]
                finer = [w for low, high in ends for w in np.linspace(low, high, 9)[1:-1]]
                family = [f for f in _scalings(name, space, finer) if f[0] == 2]
                measured = _kept_ms([*found, *(nodes for _, _, nodes in family)], device, model)
                own = float(np.median(measured[: len(found)]))
                ratios = [ms / own for ms in measured[len(found) :]]
            # within the band, the nearest to two blocks a stage; else the nearest in latency
            off = [abs(r - 1) for r in ratios]
            best = min(
                range(len(family)),
                key=lambda i: (
                    off[i] > BAND,
                    abs(family[i][0] - 2) if off[i] <= BAND else 0,
                    off[i],
                ),
            )
            depth, width, scaled[name] = family[best]
            print(
                f"MobileNet{name}: {depth} blocks a stage, width {width:g}, takes "
                f"{ratios[best]:.3f} of what was found", flush=True,
            )  # fmt: skip
        same = [n for n, ms in zip(pool, random_ms, strict=True) if abs(ms / target - 1) <= BAND]
        return cls(target, found_ms, same, len(pool), scaled)


class _OutOfTimeError(Exception):
    """--minutes are over."""


def standalone(
    nodes: list[Node], dataset: ImageDataset, recipe: Recipe
) -> tuple[float, float, float]:
    """Validation and test accuracy, and seconds, of one training from scratch; or of before."""
    RUNS.mkdir(parents=True, exist_ok=True)
    path = RUNS / f"alone-{key_of(nodes, dataset, recipe)}.json"
    if not path.exists():
        train_alone(nodes, dataset, recipe, path)
    trained = Trained.read(path)
    return trained.validation, trained.test, trained.seconds


def devices(options: argparse.Namespace) -> dict[str, object]:
    """Test accuracies, and latencies on both devices, of what was found for each."""
    recipe = Recipe(epochs=options.standalone_epochs, batch_size=64)
    seeds = SEEDS[:1] if options.quick else SEEDS
    names = ("cpu", "web")
    prepared = {name: _prepared(options, name) for name in names}
    dataset, space = prepared["cpu"][:2]
    threads = max(1, torch.get_num_threads() // options.workers)
    found: dict[str, list[list[Node]]] = {}
    accuracies: dict[str, list[float]] = {}
    limits = {"cpu": budget_at(prepared["cpu"][4], options.share)}
    with ProcessPoolExecutor(
        options.workers, get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        for name in names:
            path = prepared[name][3]
            searches = [
                pool.submit(searched, dataset, space, path, options.epochs, limits[name], seed)
                for seed in seeds
            ]
            archs = space.encode([one.result()[0].best.architecture for one in searches])
            found[name] = [space.layers(arch) for arch in archs]
            trainings = [
                pool.submit(standalone, n, dataset, recipe.model_copy(update={"seed": seed}))
                for n, seed in zip(found[name], seeds, strict=True)
            ]
            accuracies[name] = [one.result()[1] for one in trainings]
            if name == "cpu":
                elsewhere = np.median(prepared["web"][4].predict_ms(archs))
                limits["web"] = options.web_share * float(elsewhere)
    document: dict[str, object] = {f"{name}_budget_ms": limit for name, limit in limits.items()}
    for name in names:
        document[f"found_for_{name}"] = interval(accuracies[name])
    document["web_over_cpu_accuracy"] = difference(accuracies["web"], accuracies["cpu"])
    for name, other in (names, names[::-1]):
        device, model = prepared[name][2], prepared[name][4]
        times = np.split(np.array(measured_ms([*found[name], *found[other]], device, model)), 2)
        for whose, of in zip((name, other), times, strict=True):
            document[f"on_{name}_found_for_{whose}_ms"] = " ".join(f"{ms:.4g}" for ms in of)
        document[f"on_{name}_{other}_over_{name}"] = float(
            np.median(times[1]) / np.median(times[0])
        )
    return document


def _kept_ms(networks: list[list[Node]], device: Device, model: LatencyModel) -> list[float]:
    """Latencies in one run: of now, or of a run of this benchmark before."""
    keys = json.dumps([[node.layer.key for node in nodes] for nodes in networks])
    record = RUNS / f"latencies-{_key(keys, model.profile.identity.model_dump_json())}.json"
    if not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(measured_ms(networks, device, model)))
    times: list[float] = json.loads(record.read_text())
    return times


def _scalings(
    name: str, space: CandidateSpace, widths: Sequence[float]
) -> list[tuple[int, float, list[Node]]]:
    """Blocks a stage, width, and a MobileNet of the same stem, strides and head with those."""
    is_v3 = name == "V3"
    options = []
    for depth in (1, 2, 3):
        for width in widths:
            table = space.table
            stages = tuple(
                Stage(
                    max(8, int(s.width * width + 4) // 8 * 8), s.stride,
                    s.activation if is_v3 else "relu6", s.se and is_v3, (depth,),
                )
                for s in table.stages
            )  # fmt: skip
            plain = StageTable(
                stem_width=table.stem_width, first_width=table.first_width,
                first_activation="relu" if is_v3 else "relu6", stages=stages,
                head_width=table.head_width, head_features=table.head_features if is_v3 else 0,
                activation="h_swish" if is_v3 else "relu6",
                kernel_sizes=(5 if is_v3 else 3,), expand_ratios=(6,),
                resolutions=space.resolutions, num_classes=space.num_classes,
            )  # fmt: skip
            one = CandidateSpace(
                name, plain, num_classes=space.num_classes, in_channels=space.in_channels,
                resolutions=space.resolutions,
            )  # fmt: skip
            options.append((depth, float(width), one.layers(one.largest()[0])))
    return options


def measured_ms(
    networks: Sequence[list[Node]], device: Device, model: LatencyModel
) -> list[float]:
    """Latencies in one interleaved run, at the profile's level of the machine."""
    rule = StopRule(precision=0.01, min_sessions=4, max_sessions=6)
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            str(i): write_model(Path(folder) / f"{i}.onnx", nodes, RandomWeights(i))
            for i, nodes in enumerate(networks)
        }
        samples: dict[str, Samples] = measure(device, paths, rule)
    return [samples[str(i)].estimate(model.profile.reference).median for i in range(len(networks))]


def _key(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def interval(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2%} (n=1)"
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    return f"{np.mean(values):.2%} +-{half:.2%} (n={len(values)})"


def difference(ours: Sequence[float], others: Sequence[float]) -> str:
    points = 100 * (np.mean(ours) - np.mean(others))
    if min(len(ours), len(others)) < 2:
        return f"{points:+.2f} points"
    low, high = stats.ttest_ind(ours, others, equal_var=False).confidence_interval()
    return f"{points:+.2f} points +-{50 * (high - low):.2f}"  # Welch's interval


if __name__ == "__main__":
    main()
