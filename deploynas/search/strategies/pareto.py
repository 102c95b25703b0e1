"""The whole trade-off between accuracy and costs, in one run."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, field_validator

from deploynas.costs import COSTS
from deploynas.search.budget import own_name
from deploynas.search.drawing import MAX_DRAWS, admitted_samples
from deploynas.search.problem import Problem
from deploynas.search.strategy import Effort, Evaluating, Options, Rounds
from deploynas.spaces import Archs

POPULATION, CAP_TOURNAMENT, GENERATIONS = 100, 30, 2_000
TOP_SHARE = 0.2  # of the caps
SCREENED, MAX_FITTED = 64, 2_000  # children, evaluations


def _split(names: object) -> object:
    return tuple(n.strip() for n in names.split(",")) if isinstance(names, str) else names


class ParetoOptions(Options):
    """Options of the search for a front."""

    costs: Annotated[
        tuple[str, ...],
        BeforeValidator(_split),
        Field(min_length=1, description="Costs that are traded for accuracy, commas between."),
    ] = ("latency_ms",)

    @field_validator("costs")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            COSTS.load(own_name(name))
        if len(set(names)) < len(names):
            raise ValueError("each cost is named once")
        return names


class Pareto(Evaluating):
    """Evolution under caps.

    For every child a cap is drawn for each cost within the range of what was seen so far and of
    the uniform networks within the limits, a fifth of the time the top of it, where the most
    accurate networks are; the most accurate of tournaments among all networks that keep the caps
    are parents, their children have one choice changed, or two, and keep the caps too.

    Of :data:`SCREENED` children the one is evaluated of which a Gaussian process, fitted to what
    was evaluated, expects most, a standard deviation added (Srinivas et al. 2010, "Gaussian
    process optimization in the bandit setting", section 4); the first where more than
    :data:`MAX_FITTED` evaluations are allowed, which then must be cheap. Costs are known without
    evaluation, so that ranking by dominance and crowding (NSGA-II, Deb et al. 2002), which treats
    them as unknown, spends far more evaluations on the same front.
    """

    name = "pareto"
    help = "The whole trade-off: front, hypervolume, knee."
    options = ParetoOptions
    shows_front = True

    def shown_costs(self, options: Any) -> tuple[str, ...]:
        """Those that were asked for."""
        found: tuple[str, ...] = options.costs
        return found

    def rounds(
        self, problem: Problem, options: ParetoOptions, rng: np.random.Generator, effort: Effort
    ) -> Rounds:
        """A first population, then children under caps."""
        from deploynas.search.process import Screen

        num, space = effort.num_evaluations, problem.space
        wanted = min(POPULATION // 2, -(-num // 3))
        archs = admitted_samples(effort.first(wanted), problem, rng)
        accuracies = yield archs
        values = problem.values(archs, options.costs)
        seen = {arch.tobytes() for arch in archs}
        num_children = max(effort.at_once, num // GENERATIONS)
        screen = Screen(space) if num <= MAX_FITTED else None
        num_tries = 8 if screen is None else SCREENED
        ends = np.concatenate([space.uniform(), space.largest()])
        ends = np.concatenate([archs, ends[problem.admits(ends)]])
        costs = problem.values(ends, options.costs)
        low, high = costs.min(axis=0), costs.max(axis=0)
        stuck = 0
        while len(archs) < num and stuck < 2 * MAX_DRAWS:
            low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
            size = min(num_children, num - len(archs))
            chosen: list[Archs] = []
            for _ in range(max(4, size)):
                caps = high if rng.random() < TOP_SHARE else rng.uniform(low, high)
                fitting = np.flatnonzero((values <= caps).all(axis=1))
                if not len(fitting):
                    continue
                drawn = fitting[rng.integers(len(fitting), size=(num_tries, CAP_TOURNAMENT))]
                best = drawn[np.arange(num_tries), accuracies[drawn].argmax(axis=1)]
                tries = space.change_one(archs[best], rng)
                twice = rng.random(num_tries) < 0.5
                tries[twice] = space.change_one(tries[twice], rng)
                kept = (problem.values(tries, options.costs) <= caps).all(axis=1)
                tries = tries[kept & problem.admits(tries)]
                fresh = [arch for arch in tries if arch.tobytes() not in seen]
                if not fresh:
                    continue
                index = 0 if screen is None else screen.best_of(np.stack(fresh), archs, accuracies)
                chosen.append(fresh[index])
                seen.add(fresh[index].tobytes())
                if len(chosen) == size:
                    break
            stuck = 0 if chosen else stuck + 1
            if chosen:
                children = np.stack(chosen)
                scores = yield children
                archs = np.concatenate([archs, children])
                accuracies = np.concatenate([accuracies, scores])
                values = np.concatenate([values, problem.values(children, options.costs)])


STRATEGY = Pareto()
