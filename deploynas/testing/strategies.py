"""The promises that all strategies share which have networks evaluated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from deploynas.costs import Floats
from deploynas.errors import InfeasibleBudgetError, UnknownNameError
from deploynas.search import Budget, Effort, Problem, explore
from deploynas.search.strategy import STRATEGIES, Evaluating
from deploynas.spaces import Archs, SearchSpace
from deploynas.testing.report import promises, require

NUM_EVALUATIONS = (1, 40)


@promises
def check_strategy(strategy: Evaluating, space: SearchSpace) -> None:
    """Check a strategy on a space whose accuracies are made up.

    It is found by its name. Within ``num_evaluations``, every network once, within the limits, the
    same for the same seed and others for another; an impossible limit ends; options have defaults,
    ranges and a line of help, and unknown ones are refused.

    Raises:
        AssertionError: One of them is not as promised.
    """
    options = strategy.options()
    require(
        STRATEGIES.load(strategy.name) is strategy, f"{strategy.name} is not found by its name"
    )
    require(bool(strategy.help), f"{strategy.name} has no help")
    _check_options(strategy)
    require(strategy.misfit(space) is None, f"{strategy.name} does not fit {space.name}")
    macs = np.sort(space.macs(space.sample_networks(2_000, np.random.default_rng(0))))
    model: Any = SimpleNamespace(space=space, half_width=0.0, upper_ms=_ms(space))
    model.predict_ms = model.upper_ms
    limits = {
        "without limits": Budget(),
        "within half of all": Budget(macs=float(macs[len(macs) // 2])),
        "in a corner": Budget(macs=float(macs[len(macs) // 50])),
    }
    for what, budget in limits.items():
        problem = Problem(model, budget)
        for num in NUM_EVALUATIONS:
            where = f"{strategy.name} {what}, {num} evaluations"
            found, asked = _explored(strategy, options, problem, 3, num)
            require(0 < len(asked) <= num, f"{where}: {len(asked)} were evaluated")
            require(len(set(asked)) == len(asked), f"{where}: a network was evaluated twice")
            require(bool(problem.admits(found).all()), f"{where}: a result is over a limit")
            same, _ = _explored(strategy, options, problem, 3, num)
            require(np.array_equal(found, same), f"{where}: the same seed finds another")
        other, _ = _explored(strategy, options, problem, 4, NUM_EVALUATIONS[-1])
        require(
            space.size < 10 or not np.array_equal(found, other),
            f"{strategy.name} {what}: another seed finds the same",
        )
    impossible = Problem(model, Budget(macs=float(space.macs(space.smallest())[0]) * 0.99))
    try:
        _explored(strategy, options, impossible, 0, NUM_EVALUATIONS[-1])
    except InfeasibleBudgetError:
        return
    require(False, f"{strategy.name} finds a network under a limit that none keeps")


def _check_options(strategy: Evaluating) -> None:
    for one in strategy.options.described():
        require(bool(one["help"]), f"{strategy.name}: the option {one['name']} has no description")
    try:
        strategy.options_from({"no_such_option": "1"})
    except (UnknownNameError, ValueError):
        return
    require(False, f"{strategy.name} takes an option that it has not")


def _explored(
    strategy: Evaluating, options: Any, problem: Problem, seed: int, num: int
) -> tuple[Archs, list[bytes]]:
    """What is found, and all that was evaluated."""
    weights = np.random.default_rng(7).normal(size=len(problem.space.choices))
    asked: list[bytes] = []

    def evaluate(archs: Archs) -> Floats:
        asked.extend(arch.tobytes() for arch in archs)
        scores: Floats = 0.5 + 0.01 * np.tanh(archs @ weights)
        return scores

    rng = np.random.default_rng(seed)
    found = explore(strategy, options, problem, evaluate, rng, Effort(num))
    return found.archs, asked


def _ms(space: SearchSpace) -> Any:
    return lambda archs: space.macs(archs) / 1e6
