"""Do the strategies find what is there to be found? On spaces whose optimum is known.

python benchmarks/strategies.py [--quick] [--seeds 20] [--json]
An NK landscape (Kauffman and Weinberger 1989): 8 choices of 4 options, each choice's share of the
accuracy a random table over itself and the next 3 choices: 65,536 architectures, very rugged. Each
option has a random cost, and costs add up. Printed: in how many landscapes a strategy finds one
of the best 0.1 % within 300 evaluations, and the hypervolume of the Pareto front (accuracy against
cost, from the worst corner of all) after 1,000, as a share of the exhaustive front's.

python benchmarks/strategies.py --tables DIR --data cifar100 [--device pixel3 --quantile 0.3]
    [--evaluations 150] [--seeds 30] [--strategies a,b] [--fidelities] [--workers 1] [--json]
NAS-Bench-201 (Dong and Yang 2020): what a strategy sees of an architecture is its validation
accuracy after 12 epochs; it is judged by the test accuracy after 200 of the one it ranks first.
With --device networks above the quantile of that device's measured latencies are not admitted.
Keys of the document: ``strategies``, by name, ``random`` and ``dearest``, each with ``accuracy``
(the mean over the seeds), ``deviation``, ``regret`` (what the most accurate admitted network has
more, ``best``'s ``accuracy``), ``regret_over_random``, ``gain`` (random's regret less its own,
paired by seed: ``mean``, and ``low`` and ``high`` of its 95 % interval) and ``seconds`` a search;
``default``, the name of the strategy that a search takes by default. Accuracies are fractions.
``dearest`` is a control without a search: the best, by the same cheap evaluation, of the 20
admitted networks of most MACs. With --fidelities there is ``fidelities`` among the strategies: of
4,000 epochs an evaluation takes 12, or 200, which gives the test accuracy and the noise of a seed.

python benchmarks/strategies.py --tables DIR --all [...]
The same over every data set and device of the tables, and without a limit: ``settings`` holds the
documents above, ``strategies``, ``random`` and ``dearest`` the means over them.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from nasbench201 import SPENDING, Table, data_sets, devices

from deploynas.search import DEFAULT, STRATEGIES, Effort, Problem, explore
from deploynas.search.fidelities import predictor_over_fidelities
from deploynas.search.fronts import hypervolume
from deploynas.search.run import History
from deploynas.spaces import Archs, Choice, Layer, SearchSpace, Slot

NUM_CHOICES, NUM_OPTIONS, NEIGHBOURS = 8, 4, 3
TOP = 0.001
EVALUATIONS, FRONT_EVALUATIONS = 300, 1_000
FIDELITIES = "fidelities"
# those that go by what networks are worth; one-shot evolves as ofa does
DISTINCT = [name for name, one in STRATEGIES.all().items() if one.weights == "any"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="4 landscapes, or 4 seeds")
    parser.add_argument("--seeds", type=int, help="20 landscapes, or 30 seeds")
    parser.add_argument("--tables", type=Path, help="folder of NAS-Bench-201's tables")
    parser.add_argument("--data", help="its data set")
    parser.add_argument("--device", help="whose latency is limited")
    parser.add_argument(
        "--quantile", type=float, default=0.3, help="which limit, of its latencies"
    )
    parser.add_argument("--evaluations", type=int, default=150)
    parser.add_argument("--all", action="store_true", help="every data set and device")
    parser.add_argument("--strategies", default=",".join(DISTINCT))
    parser.add_argument("--fidelities", action="store_true", help="dear evaluations too")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    num_seeds = 4 if options.quick else options.seeds or (30 if options.tables else 20)
    if options.tables is None:
        document = landscapes(range(num_seeds))
    elif options.all == bool(options.data):
        parser.error("--tables needs --data NAME or --all")
    else:
        document = tables(options, num_seeds)
    if options.json:
        print(json.dumps(document))
        return
    print(as_text(document) if options.tables else as_lines(document))


def landscapes(seeds: Sequence[int]) -> dict[str, Any]:
    """What the strategies find on NK landscapes."""
    document: dict[str, Any] = {"landscapes": len(seeds)}
    for name in DISTINCT:
        started = time.monotonic()
        hits = sum(finds_the_top(name, seed) for seed in seeds)
        seconds = (time.monotonic() - started) / len(seeds)
        document[f"{name}_hits"] = hits
        print(f"{name:10} {hits} of {len(seeds)}, {seconds:.1f} s a search", file=sys.stderr)
    for name in ("pareto", "random"):
        shares = [front_share(name, seed) for seed in seeds]
        document[f"{name}_hypervolume"] = float(np.mean(shares))
        document[f"{name}_hypervolume_worst"] = float(np.min(shares))
    return document


def as_lines(document: Mapping[str, Any]) -> str:
    """A number a line."""
    return "\n".join(
        f"{key:28} {value:.4f}" if isinstance(value, float) else f"{key:28} {value}"
        for key, value in document.items()
    )


@dataclass(frozen=True)
class Setting:
    """What is searched, and how long."""

    folder: Path
    data: str
    device: str | None
    quantile: float
    num_evaluations: int

    @property
    def table(self) -> Table:
        """Its accuracies and latencies."""
        return table_of(self.folder, self.data, self.device, self.quantile)


table_of = functools.lru_cache(4)(Table)


def trial(setting: Setting, name: str, seed: int) -> tuple[float, float]:
    """The test accuracy of what a strategy ranks first, and the seconds of its search."""
    table = setting.table
    started = time.monotonic()
    problem = Problem(table, table.budget)
    if name == FIDELITIES:
        history = over_fidelities(table, problem, seed)
    else:
        history = explored(name, problem, table.evaluate, seed, setting.num_evaluations)
        assert len(history.archs) <= setting.num_evaluations
    seconds = time.monotonic() - started
    assert problem.admits(history.archs).all()
    return float(table.full[table.places(history.archs[history.best(1)])][0]), seconds


def over_fidelities(table: Table, problem: Problem, seed: int) -> History:
    """A search that spends 4,000 epochs."""
    noise, spent = np.random.default_rng([seed, 1]), 0.0  # of the trainings' seeds

    def evaluate(archs: Archs, fidelity: int) -> np.ndarray:
        nonlocal spent
        spent += len(archs) * (SPENDING.dear if fidelity else SPENDING.cheap)
        return table.evaluate_at(archs, fidelity, noise)

    rng = np.random.default_rng(seed)
    history = predictor_over_fidelities(problem, evaluate, rng, SPENDING)
    assert spent <= SPENDING.total
    return history


def tables(options: argparse.Namespace, num_seeds: int) -> dict[str, Any]:
    """What the strategies find on NAS-Bench-201; see the module."""
    names = ["random", *(n for n in options.strategies.split(",") if n != "random")]
    for name in names:
        STRATEGIES.load(name)  # one that is not known ends here
    names += [FIDELITIES] if options.fidelities else []
    wanted: list[tuple[str, str | None]] = [(options.data, options.device)]
    if options.all:
        columns = [None, *devices(options.tables)]
        wanted = [(data, device) for data in data_sets(options.tables) for device in columns]
    settings = [
        Setting(options.tables, data, device, options.quantile, options.evaluations)
        for data, device in wanted
    ]
    jobs = [(s, name, seed) for s in settings for name in names for seed in range(num_seeds)]
    with ProcessPoolExecutor(options.workers) as pool:
        found = list(pool.map(trial, *zip(*jobs, strict=True)))
    shape = (len(settings), len(names), num_seeds)
    accuracies, seconds = (np.reshape(part, shape) for part in zip(*found, strict=True))
    documents = [
        one_setting(*each, names=names) for each in zip(settings, accuracies, seconds, strict=True)
    ]
    if not options.all:
        return documents[0]
    best = np.array([one["best"]["accuracy"] for one in documents])[:, None, None]
    regrets = (best - accuracies).mean(axis=0)
    entries = {
        name: described(regrets[i], regrets[0], seconds[:, i].mean())
        for i, name in enumerate(names)
    }
    dearest = np.mean([one["dearest"]["regret"] for one in documents])
    return {
        "seeds": num_seeds, "evaluations": options.evaluations, "quantile": options.quantile,
        "strategies": entries, "random": entries["random"],
        "dearest": described(np.full(num_seeds, dearest), regrets[0], 0.0),
        "default": DEFAULT, "settings": documents,
    }  # fmt: skip


def one_setting(
    setting: Setting, accuracies: np.ndarray, seconds: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """The document of one data set and limit.

    Args:
        setting: Of these.
        accuracies: ``(num_strategies, num_seeds)``.
        seconds: The same.
        names: Of the strategies, random first.
    """
    table = setting.table
    full = np.where(table.admitted, table.full, -np.inf)
    best = float(full.max())
    regrets = best - accuracies
    entries = {
        name: {
            "accuracy": float(accuracies[i].mean()),
            "deviation": float(accuracies[i].std(ddof=1)) if len(accuracies[i]) > 1 else 0.0,
            **described(regrets[i], regrets[0], float(seconds[i].mean())),
        }
        for i, name in enumerate(names)
    }
    dearest = table.dearest()
    chosen = table.places(dearest)[table.evaluate(dearest).argmax()]
    control = np.full(accuracies.shape[1], best - table.full[chosen])
    return {
        "data": setting.data, "device": setting.device, "limit_ms": table.budget.latency_ms,
        "evaluations": setting.num_evaluations, "seeds": accuracies.shape[1],
        "num_admitted": int(table.admitted.sum()),
        "best": {"accuracy": best, "cell": table.cell(int(full.argmax()))},
        "strategies": entries, "random": entries["random"],
        "dearest": {
            "accuracy": float(table.full[chosen]), "deviation": 0.0,
            **described(control, regrets[0], 0.0),
        },
        "default": DEFAULT,
    }  # fmt: skip


def described(regrets: np.ndarray, random: np.ndarray, seconds: float) -> dict[str, Any]:
    """Regret, and what is gained over random search, from regrets a seed."""
    gains = random - regrets
    mean, half = float(gains.mean()), 0.0
    if len(gains) > 1 and gains.std() > 0:
        from scipy import stats

        error = float(gains.std(ddof=1)) / len(gains) ** 0.5
        half = float(stats.t.ppf(0.975, len(gains) - 1)) * error
    return {
        "regret": float(regrets.mean()),
        "regret_over_random": float(regrets.mean() / random.mean()),
        "gain": {"mean": mean, "low": mean - half, "high": mean + half},
        "seconds": seconds,
    }


def as_text(document: Mapping[str, Any]) -> str:
    """A document of tables for people: per cent."""
    lines = []
    for one in [*document.get("settings", []), document]:
        if "data" in one:
            limit = f"{one['device']} <= {one['limit_ms']:g} ms" if one["device"] else "no limit"
            lines.append(f"{one['data']}, {limit}: best {100 * one['best']['accuracy']:.2f}")
        else:
            lines.append(f"over {len(one['settings'])} settings")
        for name, entry in {**one["strategies"], "dearest": one["dearest"]}.items():
            reached = ""
            if "accuracy" in entry:
                reached = f"{100 * entry['accuracy']:6.2f} +-{100 * entry['deviation']:.2f} "
            low, high = (100 * entry["gain"][end] for end in ("low", "high"))
            lines.append(
                f"  {name:10}{reached} regret {100 * entry['regret']:5.2f}, "
                f"{entry['regret_over_random']:.2f} of random's, gain {low:5.2f} to {high:5.2f}, "
                f"{entry['seconds']:.1f} s{'  (default)' if name == one['default'] else ''}"
            )
    return "\n".join(lines)


def explored(
    name: str, problem: Problem, evaluate: Callable[[Archs], np.ndarray], seed: int, num: int
) -> History:
    """What a strategy has evaluated."""
    strategy, rng = STRATEGIES.load(name), np.random.default_rng(seed)
    return explore(strategy, strategy.options(), problem, evaluate, rng, Effort(num))


def finds_the_top(name: str, seed: int) -> bool:
    """Whether a strategy finds one of the best 0.1 % of a landscape."""
    land = Landscape(seed)
    best = np.sort(land.accuracies(land.everything))
    history = explored(name, Problem(land), land.accuracies, seed, EVALUATIONS)
    assert len(history.archs) <= EVALUATIONS
    return bool(history.accuracies.max() >= best[-int(TOP * len(best))])


def front_share(name: str, seed: int) -> float:
    """Hypervolume of what a strategy evaluated, over that of the exhaustive front."""
    land = Landscape(seed)
    scores, costs = land.accuracies(land.everything), land.upper_ms(land.everything)
    worst = (float(costs.max()), float(scores.min()))
    history = explored(name, Problem(land), land.accuracies, seed, FRONT_EVALUATIONS)
    found = hypervolume(land.upper_ms(history.archs)[:, None], history.accuracies, worst)
    return found / hypervolume(costs[:, None], scores, worst)


class TableSpace(SearchSpace):
    """Choices and nothing else: every option is a layer of some size, no network is built."""

    def __init__(self, num_choices: int = NUM_CHOICES, num_options: int = NUM_OPTIONS) -> None:
        self.name, self.num_classes, self.in_channels, self.resolutions = "table", 2, 1, (8,)
        options = tuple(range(num_options))
        self.choices = tuple(Choice(f"choice{i}", options) for i in range(num_choices))
        self.layer_table = tuple(
            Layer("conv", 1, 1 + option, 8 + i, 8 + i)
            for i in range(num_choices)
            for option in options
        )
        self.slots = tuple(
            Slot((i,), i * num_options + np.arange(num_options)) for i in range(num_choices)
        )

    def canonical(self, archs: Archs) -> Archs:
        """Every choice has an effect."""
        return self.as_rows(self._checked(archs))

    def encode(self, dicts: Sequence) -> Archs:
        """Dict form -> rows."""
        return self.as_rows([one["options"] for one in dicts])

    def decode(self, archs: Archs) -> list[dict[str, object]]:
        """Rows -> dict form."""
        return [{"options": row.tolist()} for row in self._checked(archs)]

    def with_resolutions(self, resolutions: Sequence[int]) -> Self:
        """There is one."""
        return self

    def uniform(self) -> Archs:
        """The same option everywhere."""
        num = len(self.choices[0].options)
        return np.repeat(np.arange(num, dtype=np.uint8)[:, None], len(self.choices), axis=1)


@dataclass
class Landscape:
    """An NK landscape with costs: in place of a latency model, and of an evaluator."""

    seed: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.space = TableSpace()
        self.half_width = 0.0
        shape = (NUM_OPTIONS,) * (NEIGHBOURS + 1)
        self._tables = rng.random((NUM_CHOICES, *shape))
        self._costs = np.sort(rng.random((NUM_CHOICES, NUM_OPTIONS)), axis=1)

    @property
    def everything(self) -> Archs:
        """Every architecture."""
        return self.space.everything()

    def accuracies(self, archs: Archs) -> np.ndarray:
        """``(n,)`` fractions."""
        shares = [
            table[tuple(archs[:, (i + k) % NUM_CHOICES] for k in range(NEIGHBOURS + 1))]
            for i, table in enumerate(self._tables)
        ]
        return np.mean(shares, axis=0)

    def upper_ms(self, archs: Archs) -> np.ndarray:
        """``(n,)`` costs."""
        return self._costs[np.arange(NUM_CHOICES), archs].sum(axis=1)

    predict_ms = upper_ms

    @property
    def layer_terms(self) -> np.ndarray:
        """``(len(layer_table),)`` costs: an option is a layer."""
        return self._costs.ravel()

    intercept_term = 0.0

    def ms_of(self, terms: float) -> float:
        """The sum is the cost."""
        return terms

    terms_of = within_ms = ms_of


if __name__ == "__main__":
    main()
