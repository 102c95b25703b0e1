"""Do the strategies find what is there to be found? On a tabular space whose optimum is known.

python benchmarks/strategies.py [--json] [--quick] [--seeds 20]
An NK landscape (Kauffman and Weinberger 1989): 8 choices of 4 options, each choice's share of the
accuracy a random table over itself and the next 3 choices: 65,536 architectures, very rugged. Each
option has a random cost, and costs add up. Printed: in how many landscapes a strategy finds one
of the best 0.1 % within 300 evaluations, and the hypervolume of the Pareto front (accuracy against
cost, from the worst corner of all) after 1,000, as a share of the exhaustive front's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from deploynas.search import STRATEGIES, Budget, Effort, Problem, explore
from deploynas.search.fronts import hypervolume
from deploynas.search.run import History
from deploynas.spaces import Archs, Choice, Layer, SearchSpace, Slot

NUM_CHOICES, NUM_OPTIONS, NEIGHBOURS = 8, 4, 3
TOP = 0.001
EVALUATIONS, FRONT_EVALUATIONS = 300, 1_000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="4 landscapes")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    seeds = range(4 if options.quick else options.seeds)
    document: dict[str, object] = {"landscapes": len(seeds)}
    for name in evaluating():
        started = time.monotonic()
        hits = sum(finds_the_top(name, seed) for seed in seeds)
        seconds = (time.monotonic() - started) / len(seeds)
        document[f"{name}_hits"] = hits
        print(f"{name:10} {hits} of {len(seeds)}, {seconds:.1f} s a search", file=sys.stderr)
    for name in ("pareto", "random"):
        shares = [front_share(name, seed) for seed in seeds]
        document[f"{name}_hypervolume"] = float(np.mean(shares))
        document[f"{name}_hypervolume_worst"] = float(np.min(shares))
    if options.json:
        print(json.dumps(document))
        return
    for key, value in document.items():
        print(f"{key:28} {value:.4f}" if isinstance(value, float) else f"{key:28} {value}")


def evaluating() -> list[str]:
    """Strategies that go by what networks are worth; one-shot goes as ofa does."""
    return [name for name, one in STRATEGIES.all().items() if one.weights == "any"]


def explored(name: str, land: Landscape, seed: int, num: int) -> History:
    """What a strategy has evaluated on a landscape without limits."""
    strategy, rng = STRATEGIES.load(name), np.random.default_rng(seed)
    problem = Problem(land, Budget())
    return explore(strategy, strategy.options(), problem, land.accuracies, rng, Effort(num))


def finds_the_top(name: str, seed: int) -> bool:
    """Whether a strategy finds one of the best 0.1 % of a landscape."""
    land = Landscape(seed)
    best = np.sort(land.accuracies(land.everything))
    history = explored(name, land, seed, EVALUATIONS)
    assert len(history.archs) <= EVALUATIONS
    return bool(history.accuracies.max() >= best[-int(TOP * len(best))])


def front_share(name: str, seed: int) -> float:
    """Hypervolume of what a strategy evaluated, over that of the exhaustive front."""
    land = Landscape(seed)
    scores, costs = land.accuracies(land.everything), land.upper_ms(land.everything)
    worst = (float(costs.max()), float(scores.min()))
    history = explored(name, land, seed, FRONT_EVALUATIONS)
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

    terms_of = ms_of


if __name__ == "__main__":
    main()
