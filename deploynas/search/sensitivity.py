"""What each choice loses alone, a knapsack of that, then evolution around it.

For networks that are trained as they are, and lose by every cut: no strategy of any space, because
it judges networks outside the limits first, the original with one choice changed.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from deploynas.costs import Floats
from deploynas.errors import InfeasibleBudgetError
from deploynas.search.drawing import MAX_DRAWS, unseen
from deploynas.search.problem import Problem
from deploynas.search.strategy import Effort, Evaluating, Options, Rounds
from deploynas.spaces import Archs, SearchSpace

LEAST_SCORE = 1e-9
LEAST_LOSS = 1e-4  # of a step down: what seems to lose nothing may
MAX_STEPS = 5_000  # of a network on its way to the limits
Ints = np.ndarray


class SensitivityOptions(Options):
    """Options of the search by sensitivity."""

    share: Annotated[
        float, Field(gt=0, lt=1, description="Of the evaluations: choices changed one by one.")
    ] = 0.35
    spread: Annotated[
        float, Field(ge=0, description="Of the losses by which knapsacks differ, logarithmic.")
    ] = 0.5
    tournament: Annotated[
        int, Field(ge=1, description="Of so many at random the fittest is a parent.")
    ] = 4


class Losses:
    """What every option of every choice is believed to lose, on top of the largest network.

    Losses are differences of the logarithm of a score, known at a few options of each choice and
    taken to grow with the square of how far an option is from the largest: cutting twice as much
    hurts more than twice. They are added up, which is wrong, and good enough to begin with.

    Args:
        space: Of the choices.
        known: Column -> option -> loss.
    """

    def __init__(self, space: SearchSpace, known: dict[int, dict[int, float]]) -> None:
        most = int(space.num_options.max())
        self.table = np.zeros((len(space.choices), most))
        for column, losses in known.items():
            top = int(space.num_options[column]) - 1
            far = ((top - np.arange(top + 1)) / top) ** 2
            options = sorted(losses, reverse=True)
            at = np.array([0.0, *(far[o] for o in options)])
            values = np.maximum.accumulate([0.0, *(losses[o] for o in options)])
            found = np.interp(far, at, values)
            beyond = far > at[-1]
            found[beyond] = values[-1] * far[beyond] / at[-1]
            self.table[column, : top + 1] = found + LEAST_LOSS * (top - np.arange(top + 1))

    def shaken(self, n: int, spread: float, rng: np.random.Generator) -> Floats:
        """``(n, num_choices, most options)``: the first as it is, others with errors a choice."""
        factors = np.exp(spread * rng.standard_normal((n, len(self.table), 1)))
        factors[:1] = 1.0
        return factors * self.table


class Sensitivity(Evaluating):
    """Sensitivity, a multiple-choice knapsack, evolution.

    Every choice is changed alone in the largest network; what that loses, by the logarithm of the
    score, is what an option costs in a knapsack that is packed greedily: the least loss a unit of
    what is over the limits first (Sinha and Zoltners 1979, "The multiple-choice knapsack
    problem"), then what is left is filled up. Because choices interact, packs under losses with
    errors are a first population, whose children, changed in one to three choices and packed
    again, take the place of the weakest.
    """

    name = "sensitivity"
    help = "What each choice loses alone, a knapsack of that, then evolution around it."
    options = SensitivityOptions

    def rounds(
        self, problem: Problem, options: SensitivityOptions, rng: np.random.Generator,
        effort: Effort,
    ) -> Rounds:  # fmt: skip
        """Choices one by one, packs, children."""
        space, num = problem.space, effort.num_evaluations
        rows, places = one_by_one(space, max(1, int(options.share * num)))
        scores = yield rows
        losses = losses_of(space, places, scores)
        seen = {row.tobytes() for row in rows}
        wanted = effort.first(max(4, num // 6))
        packs = packed(
            problem, np.repeat(space.largest(), 2 * wanted, axis=0),
            losses.shaken(2 * wanted, options.spread, rng),
        )  # fmt: skip
        alive = unseen(packs, seen, max(1, min(wanted, num - len(rows))))
        if not len(alive):
            return
        worth = yield alive
        size, stuck = len(alive), 0
        while len(seen) < num and stuck < MAX_DRAWS:
            at_once = max(1, min(effort.at_once, num - len(seen)))
            drawn = [rng.choice(len(alive), min(options.tournament, len(alive)), replace=False)
                     for _ in range(4 * at_once)]  # fmt: skip
            parents = alive[[max(one, key=lambda i: float(worth[i])) for one in drawn]]
            children = parents
            for _ in range(int(rng.integers(1, 4)) + stuck // 20):
                children = space.change_one(children, rng)
            tables = losses.shaken(len(children), options.spread, rng)
            fresh = unseen(packed(problem, children, tables), seen, at_once)
            stuck = 0 if len(fresh) else stuck + 1
            if len(fresh):
                alive = np.concatenate([alive, fresh])
                worth = np.concatenate([worth, (yield fresh)])
                best = np.argsort(-worth, kind="stable")[:size]
                alive, worth = alive[best], worth[best]


def one_by_one(space: SearchSpace, num: int) -> tuple[Archs, list[tuple[int, int]]]:
    """About ``num`` networks: the largest, and it with one choice changed, at a few options each.

    Returns:
        Rows, and of all but the first the column and the option.
    """
    columns = np.flatnonzero(space.num_options > 1)
    each = max(1, (num - 1) // max(1, len(columns)))
    largest = space.largest()
    rows, places = [largest[0]], []
    for column in columns:
        top = int(space.num_options[column]) - 1
        # evenly from the smallest up; where there is one, the middle
        options = np.linspace(0, top, each + 1)[:-1] if each > 1 else np.array([top // 2])
        for option in np.unique(np.rint(options).astype(int)):
            row = largest[0].copy()
            row[column] = option
            rows.append(row)
            places.append((int(column), int(option)))
    return space.canonical(np.stack(rows)), places


def losses_of(space: SearchSpace, places: list[tuple[int, int]], scores: Floats) -> Losses:
    """What choices lose, by the scores of :func:`one_by_one`."""
    worth = np.log(np.maximum(scores, LEAST_SCORE))
    known: dict[int, dict[int, float]] = {}
    for (column, option), one in zip(places, worth[1:], strict=True):
        known.setdefault(column, {})[option] = max(0.0, float(worth[0] - one))
    return Losses(space, known)


def packed(problem: Problem, rows: Archs, tables: Floats) -> Archs:
    """Networks brought within the limits, each by its own losses, and filled up again.

    Args:
        problem: Limits.
        rows: ``(n, num_choices)`` to begin with.
        tables: ``(n, num_choices, most options)`` losses.

    Raises:
        InfeasibleBudgetError: One is at its smallest, and over a limit.
    """
    space = problem.space
    rows = np.array(rows)
    names = list(problem.limits)
    bounds = problem.bounds
    active = np.arange(len(rows))
    for _ in range(MAX_STEPS):
        over = _excess(problem, rows[active], names, bounds)
        active, over = active[over > 0], over[over > 0]
        if not len(active):
            break
        moves, owner, loss = _neighbours(space, rows[active], tables[active], -1)
        if len(np.unique(owner)) < len(active):
            raise InfeasibleBudgetError(
                f"{space.name} was brought to its smallest, and is still over a limit"
            )
        saved = over[owner] - _excess(problem, moves, names, bounds)
        # what saves nothing yet may be on the way: a little, in the order of its loss
        rate = np.where(saved > 0, saved, 1e-9 * over[owner]) / loss
        rows[active] = moves[_best(rate, owner, len(active))]
    active = np.arange(len(rows))
    for _ in range(MAX_STEPS):
        moves, owner, loss = _neighbours(space, rows[active], tables[active], +1)
        allowed = problem.admits(moves) if len(moves) else np.zeros(0, bool)
        moves, owner, loss = moves[allowed], owner[allowed], loss[allowed]
        if not len(moves):
            break
        chosen = _best(-loss, owner, len(active))
        rows[active[np.unique(owner)]] = moves[chosen]
        active = active[np.unique(owner)]
    return space.canonical(rows)


def _excess(problem: Problem, rows: Archs, names: list[str], bounds: Floats) -> Floats:
    """``(n,)`` by how much limits are exceeded, in shares of them, summed."""
    values = problem.values(rows, names)
    found: Floats = np.maximum(0.0, (values - bounds) / np.abs(bounds)).sum(axis=1)
    return found


def _neighbours(
    space: SearchSpace, rows: Archs, tables: Floats, step: int
) -> tuple[Archs, Ints, Floats]:
    """Every row with one choice an option further, whose it is, and the change in its loss."""
    owner, column = np.nonzero(
        rows > 0 if step < 0 else rows.astype(np.int64) < space.num_options - 1
    )
    moves = rows[owner].astype(np.int64)
    before = tables[owner, column, moves[np.arange(len(owner)), column]]
    moves[np.arange(len(owner)), column] += step
    after = tables[owner, column, moves[np.arange(len(owner)), column]]
    return space.as_rows(moves), owner, after - before


def _best(values: Floats, owner: Ints, num: int) -> Ints:
    """The index of each owner's greatest value, of those that have any, in order."""
    order = np.lexsort((-values, owner))
    first = np.searchsorted(owner[order], np.unique(owner))
    found: Ints = order[first]
    return found


STRATEGY = Sensitivity()
