"""Drawing architectures within limits: uniformly, or from small to large."""

from __future__ import annotations

import numpy as np

from deploynas.errors import InfeasibleBudgetError
from deploynas.search.problem import Problem
from deploynas.spaces import Archs

MAX_DRAWS = 200  # batches drawn before a search ends that finds nothing new
EASY_DRAWS = 4  # batches of what needs no counting
ENUMERABLE = 200_000  # architectures of a space that is looked at whole


def uniform_samples(n: int, problem: Problem, rng: np.random.Generator) -> Archs:
    """``n`` different architectures, drawn uniformly from all that keep the budget.

    Draws from all networks as long as enough of them are admitted; else every network of a small
    space is looked at, and of a large one those are drawn that keep the tightest limit on a sum
    over layers. In each case all admitted networks are equally likely.

    Returns:
        Fewer where the budget admits fewer, or where a bounded search finds no more.

    Raises:
        InfeasibleBudgetError: None at all was found.
    """
    space = problem.space

    def admitted(found: Archs, drawn: Archs) -> Archs:
        both = np.concatenate([found, drawn[problem.admits(drawn)]])
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
            for one in problem.layer_sums().values()
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
        one = problem.witness(rng)
        if one is None:
            raise InfeasibleBudgetError("no architecture within the budget was found")
        found = one
    return found[:n]


def admitted_samples(n: int, problem: Problem, rng: np.random.Generator) -> Archs:
    """``n`` architectures within budget, from small to large: a first population.

    Half are drawn uniformly; the others each have their own leaning to low or high options, and
    so cover costs at which uniform draws are rare.

    Returns:
        Fewer where the budget admits fewer, or where a bounded search finds no more.

    Raises:
        InfeasibleBudgetError: None at all was found.
    """
    space, size = problem.space, max(256, n)
    uniform = uniform_samples(n, problem, rng)
    spread = space.as_rows([])
    for _ in range(EASY_DRAWS):
        drawn = space.sample_spread(size, rng)
        spread = np.concatenate([spread, drawn[problem.admits(drawn)]])
    spread = spread[rng.permutation(len(spread))]
    num = max(n - len(uniform), n // 2)
    found = np.concatenate([spread[:num], uniform, spread[num:]])
    found = found[np.sort(np.unique(found, axis=0, return_index=True)[1])][:n]
    return found[rng.permutation(len(found))]


def first_population(n: int, problem: Problem, rng: np.random.Generator) -> Archs:
    """Up to ``n`` different architectures within budget, half of them uniform ones, the dearest.

    Among the uniform subnets those are likeliest to be accurate.
    """
    space = problem.space
    uniform = space.uniform()
    uniform = uniform[problem.admits(uniform)]
    dearest = uniform[np.argsort(-space.macs(uniform), kind="stable")][: n // 2]
    rest = admitted_samples(n - len(dearest), problem, rng)
    found = np.unique(np.concatenate([dearest, rest]), axis=0)
    if len(found) < n:  # some of the drawn were uniform
        seen = {arch.tobytes() for arch in found}
        more = unseen(admitted_samples(2 * n, problem, rng), seen, n - len(found))
        found = np.concatenate([found, more])
    return found


def unseen(archs: Archs, seen: set[bytes], n: int) -> Archs:
    """The first ``n`` that are not in ``seen``, which grows."""
    found: list[Archs] = []
    for arch in archs:
        if len(found) < n and arch.tobytes() not in seen:
            seen.add(arch.tobytes())
            found.append(arch)
    return np.stack(found) if found else archs[:0]
