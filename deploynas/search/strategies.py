"""Strategies: functions of (space, budget, evaluator, rng, limits) -> history."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploynas.errors import InfeasibleBudgetError
from deploynas.profile import LatencyModel
from deploynas.search.budget import Budget, limited_sums
from deploynas.search.fronts import front
from deploynas.spaces import Archs

Floats = npt.NDArray[np.float64]
Evaluate = Callable[[Archs], Floats]  # (n, num_choices) -> (n,) accuracies, fractions
MAX_DRAWS = 200  # batches drawn before a search ends that finds nothing new
EASY_DRAWS = 4  # batches of what needs no counting
ENUMERABLE = 200_000  # architectures of a space that is looked at whole
MAX_FIRST, MAX_PARENTS, GENERATIONS = 500, 100, 200
POPULATION, TOURNAMENT = 100, 10  # of regularised evolution
CAP_TOURNAMENT, TOP_SHARE = 30, 0.2
PREDICTOR_ROUNDS = 30
SCREENED, MAX_FITTED = 64, 2_000  # children, evaluations


@dataclass(frozen=True)
class History:
    """Every distinct architecture that a strategy evaluated, in order.

    Attributes:
        archs: ``(n, num_choices)``.
        accuracies: ``(n,)`` fractions.
    """

    archs: Archs
    accuracies: Floats

    def best(self, k: int) -> list[int]:
        """Indices of the ``k`` most accurate, best first."""
        return [int(i) for i in np.argsort(-self.accuracies, kind="stable")[:k]]

    def front(self, costs: Floats) -> list[int]:
        """Indices of the Pareto front, cheapest first: no other is as cheap and as accurate.

        Args:
            costs: ``(n,)``, or ``(n, num_costs)``, of which none may be beaten.
        """
        return front(costs, self.accuracies)


@dataclass(frozen=True)
class SoftFitness:
    """Accuracy minus what exceeds the limits, in place of refusing what does.

    Fitness = accuracy - latency * max(0, ms / limit - 1) - flops * max(0, MACs / limit - 1): a
    population may pass through networks that are a little too slow. The result still keeps every
    limit.
    """

    latency: float
    flops: float

    def __call__(
        self, archs: Archs, accuracies: Floats, budget: Budget, model: LatencyModel
    ) -> Floats:
        """``(n,)``."""
        fitness = accuracies
        for weight, limit, cost in (
            (self.latency, budget.latency_ms, model.upper_ms),
            (self.flops, budget.macs, model.space.macs),
        ):
            if limit is not None:
                fitness = fitness - weight * np.maximum(0, cost(archs) / limit - 1)
        return fitness


def uniform_samples(
    n: int, budget: Budget, model: LatencyModel, rng: np.random.Generator
) -> Archs:
    """``n`` different architectures, drawn uniformly from all that keep the budget.

    Draws from all networks as long as enough of them are admitted; else every network of a small
    space is looked at, and of a large one those are drawn that keep the tightest limit on a sum
    over layers. In each case all admitted networks are equally likely.

    Returns:
        Fewer where the budget admits fewer, or where a bounded search finds no more.

    Raises:
        InfeasibleBudgetError: None at all was found.
    """
    space = model.space

    def admitted(found: Archs, drawn: Archs) -> Archs:
        both = np.concatenate([found, drawn[budget.admits(drawn, model)]])
        return both[np.sort(np.unique(both, axis=0, return_index=True)[1])]

    size = max(256, n)
    found = space.as_rows([])
    for _ in range(EASY_DRAWS):
        found = admitted(found, space.sample_networks(size, rng))
        if len(found) >= n:
            return found[:n]
    if space.size <= ENUMERABLE:
        found = admitted(space.as_rows([]), space.everything())
        found = found[rng.permutation(len(found))[:n]]
    else:
        sums = [
            (space.sums(one.values), one.limit - one.intercept)
            for one in limited_sums(model, budget)
        ]
        tightest, left = min(sums, key=lambda pair: pair[0].log_count(pair[1]), default=(None, 0))
        stuck = 0
        for _ in range(MAX_DRAWS):
            before = len(found)
            if tightest is None:
                drawn = space.sample_networks(size, rng)
            else:
                drawn = space.as_rows(tightest.sample(size, left, rng))
            found = admitted(found, drawn)
            stuck = 0 if len(found) > before else stuck + 1
            if len(found) >= n or stuck > 2 * EASY_DRAWS:
                break
    if not len(found):
        one = budget.witness(model, rng)
        if one is None:
            raise InfeasibleBudgetError("no architecture within the budget was found")
        found = one
    return found[:n]


def admitted_samples(
    n: int, budget: Budget, model: LatencyModel, rng: np.random.Generator
) -> Archs:
    """``n`` architectures within budget, from small to large: a first population.

    Half are drawn uniformly; the others each have their own leaning to low or high options, and
    so cover costs at which uniform draws are rare.

    Returns:
        Fewer where the budget admits fewer, or where a bounded search finds no more.

    Raises:
        InfeasibleBudgetError: None at all was found.
    """
    space, size = model.space, max(256, n)
    uniform = uniform_samples(n, budget, model, rng)
    spread = space.as_rows([])
    for _ in range(EASY_DRAWS):
        drawn = space.sample_spread(size, rng)
        spread = np.concatenate([spread, drawn[budget.admits(drawn, model)]])
    spread = spread[rng.permutation(len(spread))]
    num = max(n - len(uniform), n // 2)
    found = np.concatenate([spread[:num], uniform, spread[num:]])
    found = found[np.sort(np.unique(found, axis=0, return_index=True)[1])][:n]
    return found[rng.permutation(len(found))]


def random_search(
    budget: Budget,
    model: LatencyModel,
    evaluate: Evaluate,
    rng: np.random.Generator,
    num_evaluations: int,
    *,
    batch: int = 1,
) -> History:
    """Evaluate architectures drawn uniformly from all within budget: what a strategy must beat.

    They are evaluated all at once, whatever ``batch`` is.
    """
    archs = uniform_samples(num_evaluations, budget, model, rng)
    return History(archs, evaluate(archs))


def regularised_evolution(
    budget: Budget,
    model: LatencyModel,
    evaluate: Evaluate,
    rng: np.random.Generator,
    num_evaluations: int,
    *,
    population: int = POPULATION,
    tournament: int = TOURNAMENT,
    soft: SoftFitness | None = None,
    batch: int = 1,
) -> History:
    """Regularised evolution (Real et al. 2019, section 3): the oldest dies, not the weakest.

    A first population of random networks, at most an eighth of the evaluations; then the fittest
    of a random tournament has a child with one choice changed, which takes the place of the
    oldest. No network is evaluated twice: a child that is known, or outside the budget, is drawn
    again, a bounded number of times.

    Args:
        budget: Hard limits.
        model: Space and latency.
        evaluate: Accuracies.
        rng: Of every draw.
        num_evaluations: At most so many.
        population: Networks that are alive.
        tournament: Networks of which the fittest is a parent.
        soft: Fitness for networks outside the budget too; those are evaluated, but no result.
        batch: Children that are evaluated at a time.
    """
    first = admitted_samples(max(1, min(population, -(-num_evaluations // 8))), budget, model, rng)
    scores = evaluate(first)
    archs, accuracies = list(first), [float(score) for score in scores]
    seen = {arch.tobytes() for arch in first}

    def fitness(rows: Archs, found: Floats) -> Floats:
        return found if soft is None else soft(rows, found, budget, model)

    alive = deque(zip(first, fitness(first, scores), strict=True), maxlen=len(first))
    num_children = max(batch, num_evaluations // (GENERATIONS * 10))
    stuck = 0
    while len(archs) < num_evaluations and stuck < MAX_DRAWS:
        size = min(num_children, num_evaluations - len(archs))
        drawn = [
            rng.choice(len(alive), min(tournament, len(alive)), replace=False)
            for _ in range(max(4, size))
        ]
        parents = np.stack([alive[max(one, key=lambda i: alive[i][1])][0] for one in drawn])
        children = model.space.change_one(parents, rng)
        if stuck > MAX_DRAWS // 2:  # what is near is known: go further
            children = model.space.change_one(children, rng)
        if soft is None:
            children = children[budget.admits(children, model)]
        fresh = _unseen(children, seen, size)
        stuck = 0 if len(fresh) else stuck + 1
        if len(fresh):
            scores = evaluate(fresh)
            archs += list(fresh)
            accuracies += [float(score) for score in scores]
            alive.extend(zip(fresh, fitness(fresh, scores), strict=True))
    history = History(np.stack(archs), np.array(accuracies))
    if soft is None:
        return history
    kept = budget.admits(history.archs, model)
    return History(history.archs[kept], history.accuracies[kept])


def _unseen(archs: Archs, seen: set[bytes], n: int) -> Archs:
    """The first ``n`` that are not in ``seen``, which grows."""
    found: list[Archs] = []
    for arch in archs:
        if len(found) < n and arch.tobytes() not in seen:
            seen.add(arch.tobytes())
            found.append(arch)
    return np.stack(found) if found else archs[:0]


def pareto(
    budget: Budget,
    model: LatencyModel,
    evaluate: Evaluate,
    rng: np.random.Generator,
    num_evaluations: int,
    *,
    costs: Sequence[str] = ("latency_ms",),
    batch: int = 1,
) -> History:
    """The whole trade-off between accuracy and costs, in one run.

    Evolution under caps: for every child a cap is drawn for each cost within the range of what was
    seen so far and of the uniform networks within budget, a fifth of the time the top of it, where
    the most accurate networks are; the most accurate of tournaments among all networks that keep
    the caps are parents, their children have one choice changed, or two, and keep the caps too. Of
    :data:`SCREENED` children the one is evaluated of which a Gaussian process, fitted to what was
    evaluated, expects most, a standard deviation added (Srinivas et al. 2010, "Gaussian process
    optimization in the bandit setting", section 4); the first where more than :data:`MAX_FITTED`
    evaluations are allowed, which then must be cheap. Costs are known without evaluation, so that
    ranking by dominance and crowding (NSGA-II, Deb et al. 2002), which treats them as unknown,
    spends far more evaluations on the same front.

    Args:
        budget: Hard limits; a part of the trade-off outside them is not looked at.
        model: Space and latency.
        evaluate: Accuracies.
        rng: Of every draw.
        num_evaluations: At most so many.
        costs: Of :data:`COSTS`.
        batch: Children that are evaluated at a time.
    """
    from deploynas.search.process import Screen

    num_first = max(1, min(POPULATION // 2, -(-num_evaluations // 3)))
    archs = admitted_samples(num_first, budget, model, rng)
    accuracies = evaluate(archs)
    values = costs_of(model, archs, costs)
    seen = {arch.tobytes() for arch in archs}
    num_children = max(batch, num_evaluations // (GENERATIONS * 10))
    screen = Screen(model.space) if num_evaluations <= MAX_FITTED else None
    num_tries = 8 if screen is None else SCREENED
    ends = np.concatenate([model.space.uniform(), model.space.largest()])
    ends = costs_of(model, np.concatenate([archs, ends[budget.admits(ends, model)]]), costs)
    low, high = ends.min(axis=0), ends.max(axis=0)
    stuck = 0
    while len(archs) < num_evaluations and stuck < 2 * MAX_DRAWS:
        low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
        size = min(num_children, num_evaluations - len(archs))
        chosen: list[Archs] = []
        for _ in range(max(4, size)):
            caps = high if rng.random() < TOP_SHARE else rng.uniform(low, high)
            fitting = np.flatnonzero((values <= caps).all(axis=1))
            if not len(fitting):
                continue
            drawn = fitting[rng.integers(len(fitting), size=(num_tries, CAP_TOURNAMENT))]
            best = drawn[np.arange(num_tries), accuracies[drawn].argmax(axis=1)]
            tries = model.space.change_one(archs[best], rng)
            twice = rng.random(num_tries) < 0.5
            tries[twice] = model.space.change_one(tries[twice], rng)
            kept = (costs_of(model, tries, costs) <= caps).all(axis=1)
            tries = tries[kept & budget.admits(tries, model)]
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
            archs = np.concatenate([archs, children])
            accuracies = np.concatenate([accuracies, evaluate(children)])
            values = np.concatenate([values, costs_of(model, children, costs)])
    return History(archs, accuracies)


def evolution(
    budget: Budget,
    model: LatencyModel,
    evaluate: Evaluate,
    rng: np.random.Generator,
    num_evaluations: int,
    *,
    batch: int = 1,
) -> History:
    """Constrained evolution (Cai et al. 2020, section 3.4; Guo et al. 2020, algorithm 1).

    A fifth of the evaluations, at most :data:`MAX_FIRST`, is a first population: uniform subnets
    within budget and random ones. Then the best of all so far breed by crossover and mutation,
    two choices a child on average. With few evaluations every child is judged before the next
    is bred; with many there are at most :data:`GENERATIONS` batches. A child outside the budget
    is drawn again, a bounded number of times. ``batch`` children or more are evaluated at a time.
    """
    num_first = max(1, min(num_evaluations // 5, MAX_FIRST))
    archs = [_first_population(num_first, budget, model, rng)]
    seen = {row.tobytes() for row in archs[0]}
    accuracies = [evaluate(archs[0])]
    parents, fitness = archs[0], accuracies[0]
    num_parents = max(2, min(num_evaluations // 30, MAX_PARENTS))
    num_children = max(batch, num_evaluations // GENERATIONS)
    while len(seen) < num_evaluations:
        order = np.argsort(-fitness, kind="stable")[:num_parents]
        parents, fitness = parents[order], fitness[order]
        children = _children(
            parents, seen, budget, model, rng, min(num_children, num_evaluations - len(seen))
        )
        if not len(children):  # the corner is exhausted
            break
        archs.append(children)
        accuracies.append(evaluate(children))
        parents = np.concatenate([parents, children])
        fitness = np.concatenate([fitness, accuracies[-1]])
    return History(np.concatenate(archs), np.concatenate(accuracies))


def _children(
    parents: Archs,
    seen: set[bytes],
    budget: Budget,
    model: LatencyModel,
    rng: np.random.Generator,
    n: int,
) -> Archs:
    """Up to ``n`` new architectures within budget, bred from ``parents``; ``seen`` grows."""
    space, size = model.space, max(32, 2 * n)
    found: list[Archs] = []
    for _ in range(MAX_DRAWS):
        first = parents[rng.integers(len(parents), size=size)]
        second = parents[rng.integers(len(parents), size=size)]
        crossed = np.where(rng.random((size, 1)) < 0.5, space.crossover(first, second, rng), first)
        children = space.mutate(crossed, 2 / len(space.choices), rng)
        for child in children[budget.admits(children, model)]:
            key = child.tobytes()
            if key not in seen:
                seen.add(key)
                found.append(child)
                if len(found) == n:
                    return np.stack(found)
    return np.stack(found) if found else parents[:0]


def predictor_search(
    budget: Budget,
    model: LatencyModel,
    evaluate: Evaluate,
    rng: np.random.Generator,
    num_evaluations: int,
    *,
    kind: str = "process",
    batch: int = 1,
) -> History:
    """Evaluate a few, predict the rest, evaluate the most promising; again, with what was learnt.

    As the once-for-all search fits a predictor to pairs of architecture and accuracy (Cai et al.
    2020, section 3.4), but in rounds: Bayesian optimisation, where the predictor is a Gaussian
    process (Kandasamy et al. 2018, "Neural architecture search with Bayesian optimisation and
    optimal transport", section 2.2). What is first is a sixth of the evaluations, ten or more:
    random subnets and uniform ones, as in :func:`evolution`; ``batch`` or more are a round.

    Args:
        budget: Hard limits.
        model: Space and latency.
        evaluate: Accuracies.
        rng: Of every draw.
        num_evaluations: At most so many.
        kind: Of predictor: see :class:`deploynas.search.proposals.Proposals`.
        batch: Architectures that are evaluated at a time.
    """
    from deploynas.search.process import LEAST_FITTED
    from deploynas.search.proposals import Proposals

    num_first = max(-(-num_evaluations // 6), min(num_evaluations, LEAST_FITTED))
    archs = _first_population(num_first, budget, model, rng)
    accuracies = evaluate(archs)
    num_round = max(batch, num_evaluations // PREDICTOR_ROUNDS)
    proposals = Proposals(budget, model, rng, kind)
    while LEAST_FITTED <= len(archs) < num_evaluations:
        num = min(num_round, num_evaluations - len(archs))
        fresh = proposals.next(num, archs, accuracies)
        if not len(fresh):  # the corner is exhausted
            break
        archs = np.concatenate([archs, fresh])
        accuracies = np.concatenate([accuracies, evaluate(fresh)])
    return History(archs, accuracies)


def _first_population(
    n: int, budget: Budget, model: LatencyModel, rng: np.random.Generator
) -> Archs:
    """Up to ``n`` different architectures within budget, half of them uniform ones, the dearest.

    Among the uniform subnets those are likeliest to be accurate.
    """
    space = model.space
    uniform = space.uniform()
    uniform = uniform[budget.admits(uniform, model)]
    dearest = uniform[np.argsort(-space.macs(uniform), kind="stable")][: n // 2]
    rest = admitted_samples(n - len(dearest), budget, model, rng)
    found = np.unique(np.concatenate([dearest, rest]), axis=0)
    if len(found) < n:  # some of the drawn were uniform
        seen = {arch.tobytes() for arch in found}
        more = _unseen(admitted_samples(2 * n, budget, model, rng), seen, n - len(found))
        found = np.concatenate([found, more])
    return found


COSTS: dict[str, Callable[[LatencyModel, Archs], Floats]] = {
    "latency_ms": lambda model, archs: model.upper_ms(archs),
    "macs": lambda model, archs: model.space.macs(archs).astype(np.float64),
    "params": lambda model, archs: model.space.params(archs).astype(np.float64),
    "peak_memory_bytes": lambda model, archs: model.space.peak_memory_bytes(archs).astype(
        np.float64
    ),
}


def costs_of(model: LatencyModel, archs: Archs, names: Sequence[str]) -> Floats:
    """``(n, len(names))`` values of :data:`COSTS`."""
    return np.stack([COSTS[name](model, archs) for name in names], axis=1)


DEFAULT_STRATEGY = "predictor"
STRATEGIES: dict[str, Callable[..., History]] = {
    "ofa": evolution,
    "one-shot": evolution,
    "evolution": regularised_evolution,
    "pareto": pareto,
    "predictor": predictor_search,
    "random": random_search,
}
