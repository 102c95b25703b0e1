"""A network that measures over budget is never returned as a success."""

from __future__ import annotations

import numpy as np
import pytest
import strategies as bench

from deploynas.costs.latency import Latency
from deploynas.errors import InfeasibleBudgetError, UnknownNameError
from deploynas.search import STRATEGIES, Budget, Effort, Plan, Problem, search
from deploynas.search.descent import first_within
from deploynas.search.evaluations import Evaluations
from deploynas.search.judging import by_score
from deploynas.search.run import History, front_of

FINALISTS = np.array([[2], [1], [0]], np.uint8)


def one_by_one():
    finalists = iter(FINALISTS)
    return lambda share: next(finalists, None)


def shares(measure_ms, limit=1.0):
    """Of the limit that networks are measured to take."""
    return lambda arch: (measure_ms(arch) / limit, f"latency_ms {measure_ms(arch):g}")


def test_the_first_that_measures_within_budget_wins() -> None:
    best = first_within(one_by_one(), shares(lambda arch: float(arch[0]), 1.5))
    assert best.tolist() == [1]


def test_none_within_budget_is_an_error() -> None:
    with pytest.raises(InfeasibleBudgetError, match="the nearest reaches latency_ms 5"):
        first_within(one_by_one(), shares(lambda arch: 5.0 + float(arch[0]), 1.5))


def by_share(share):
    """A network that is predicted to take that share of the budget, in thousandths."""
    return np.array([round(1000 * share)])


def test_what_measured_high_once_does_not_give_the_budget_away() -> None:
    seen = []

    def measured(arch):
        seen.append(int(arch[0]))
        disturbed = 1.12 if len(seen) == 1 else 1.0
        return disturbed * float(arch[0]) / 1000, ""

    first = first_within(by_share, measured)
    assert first[0] == seen[-1] == 888
    seen.clear()
    refined = first_within(by_share, measured, most=1.05)
    assert seen == [1000, 888, 944, 972]
    assert refined[0] == 972


def test_what_measures_below_its_prediction_may_grow_as_far_as_the_prediction_alone() -> None:
    seen = []

    def measured(arch):
        seen.append(int(arch[0]))
        return 0.85 * float(arch[0]) / 1000, ""  # a machine that is quicker than in its profile

    best = first_within(by_share, measured, most=1.05)
    assert seen == [1000, 1050]
    assert best[0] == 1050
    seen.clear()
    first_within(by_share, lambda arch: (0.97 / 0.85 * measured(arch)[0], ""), most=1.05)
    assert seen == [1000]
    assert first_within(by_share, measured)[0] == 1000


def test_refinement_never_returns_what_measures_over_budget() -> None:
    best = first_within(by_share, lambda a: (0.5 if a[0] < 900 else 1.1, ""), most=1.05)
    assert best[0] < 900


LAND = bench.Landscape(0)
COSTS = np.sort(LAND.upper_ms(LAND.everything))


class Judge:
    """An evaluator of a landscape that counts what it is asked, and can be made to end early."""

    kind, num_finalists, identity = "measured", 3, "landscape"

    def __init__(self, most=10**9):
        self.asked, self.most = [], most

    def quick(self, archs):
        for arch in archs:
            self.asked.append(arch.tobytes())
            if len(self.asked) > self.most:
                raise KeyboardInterrupt
            yield LAND.accuracies(arch[None])[0]

    def promising(self, archs, scores):
        return by_score(scores)

    def final(self, archs):
        return LAND.accuracies(archs)


class Model:
    """The landscape's costs as a latency model."""

    def __init__(self):
        for name in ("space", "half_width", "upper_ms", "predict_ms", "layer_terms", "terms_of"):
            setattr(self, name, getattr(LAND, name))
        self.intercept_term, self.ms_of, self.within_ms = 0.0, LAND.ms_of, LAND.within_ms

    def extrapolates(self, ms):
        return False


def found(judge, budget, *, strategy="evolution", measure_ms=None, **changes):
    one = STRATEGIES.load(strategy)
    plan = Plan(one, one.options(), 0, Effort(60))
    measure = measure_ms and (lambda arch: {"latency_ms": measure_ms(arch)})
    return search(Problem(Model(), budget), judge, plan, measure=measure, **changes)


def row_of(candidate):
    return LAND.space.encode([candidate.architecture])


@pytest.mark.parametrize("factor", [1.1, 1.5, 2.5])
def test_a_machine_slower_than_its_profile_steps_down_along_what_was_evaluated(factor):
    """All finalists measure over budget: one that was evaluated, as much cheaper, is taken."""
    limit = float(np.quantile(COSTS, 0.7))
    measured = []

    def measure_ms(arch):
        measured.append(factor * float(LAND.upper_ms(arch[None])[0]))
        return measured[-1]

    judge = Judge()
    outcome = found(judge, Budget(latency_ms=limit), measure_ms=measure_ms)
    assert measured[-1] == outcome.measured["latency_ms"] <= limit
    assert all(ms > limit for ms in measured[:-1])
    assert row_of(outcome.best).tobytes() in set(judge.asked)
    # nothing that was evaluated, fits the corrected budget and was not measured is better
    archs = np.stack([np.frombuffer(key, np.uint8) for key in set(judge.asked)])
    fits = factor * LAND.upper_ms(archs) <= limit * 0.99
    assert outcome.best.accuracy >= LAND.accuracies(archs[fits]).max() - 0.02


@pytest.mark.parametrize("strategy", ["random", "evolution", "predictor", "pareto"])
@pytest.mark.parametrize("factor", [1.6, 2.4])
def test_where_nothing_evaluated_is_quick_enough_a_few_more_are(strategy, factor):
    """Nothing beside the strategy, whose networks are near the limit; the machine is slower."""
    limit = factor * float(COSTS[40])
    one = STRATEGIES.load(strategy)
    plan = Plan(one, one.options(), 0, Effort(24), beside=False)
    judge, measured = Judge(), []

    def measure(arch):
        measured.append(factor * float(LAND.upper_ms(arch[None])[0]))
        return {"latency_ms": measured[-1]}

    outcome = search(Problem(Model(), Budget(latency_ms=limit)), judge, plan, measure=measure)
    assert measured[-1] == outcome.measured["latency_ms"] <= limit
    assert row_of(outcome.best).tobytes() in set(judge.asked)
    assert outcome.found_by in ("strategy", "drawn")


def test_where_nothing_evaluated_measures_within_budget_the_evaluations_stay(tmp_path):
    judge = Judge()
    budget = Budget(latency_ms=float(np.quantile(COSTS, 0.2)))
    with pytest.raises(InfeasibleBudgetError, match="every evaluation is kept"):
        found(judge, budget, measure_ms=lambda arch: 1e9, keep_in=tmp_path)
    again = Judge()
    outcome = found(again, budget, keep_in=tmp_path)
    assert not again.asked
    assert Problem(Model(), budget).admits(row_of(outcome.best)).all()


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, 1, 7, 30, 75])
def test_an_interrupted_search_asks_nothing_twice_and_ends_the_same(tmp_path, most):
    budget = Budget(latency_ms=float(np.quantile(COSTS, 0.5)))
    first, second = Judge(most), Judge()
    with pytest.raises(KeyboardInterrupt):
        found(first, budget, keep_in=tmp_path)
    outcome = found(second, budget, keep_in=tmp_path)
    assert outcome == found(Judge(), budget)
    assert not set(first.asked[:most]) & set(second.asked)
    with Evaluations(tmp_path, "another", LAND.space) as kept:
        assert kept.get(np.frombuffer(second.asked[0], np.uint8), "quick") is None


@pytest.mark.parametrize("decided", [True, False])
def test_whatever_was_evaluated_may_win(decided):
    """A strategy that finds a poor network is beaten by the random search beside it."""
    worst = LAND.everything[LAND.accuracies(LAND.everything).argmin()]
    if decided:
        outcome = found(Judge(), Budget(latency_ms=1e9), decide=lambda share: worst)
    else:  # the search has a single evaluation, the largest and uniform networks are poor
        outcome = found(Judge(), Budget(latency_ms=float(COSTS[-2])), strategy="random")
    if decided:
        assert outcome.found_by in ("random", "uniform")
        assert outcome.best in (outcome.random_best, outcome.uniform_best)
        assert outcome.best.accuracy > LAND.accuracies(worst[None])[0]
    else:
        assert outcome.found_by in ("strategy", "uniform")
        assert outcome.random_best is None


def test_a_decided_network_that_measures_over_gives_way_to_what_fits():
    dear = LAND.space.largest()[0]
    limit = float(np.quantile(COSTS, 0.5))
    over = {dear.tobytes(): 2 * limit}

    def measure_ms(arch):
        return over.get(arch.tobytes(), float(LAND.upper_ms(arch[None])[0]))

    outcome = found(
        Judge(), Budget(latency_ms=limit), decide=lambda share: dear, measure_ms=measure_ms
    )
    assert outcome.found_by != "strategy"
    assert outcome.measured["latency_ms"] <= limit


def test_two_devices_are_two_limits():
    """A network is within both; what measures over either gives way."""
    reverse = Model()
    reverse.upper_ms = reverse.predict_ms = lambda archs: 8.0 - LAND.upper_ms(archs)
    reverse.layer_terms = 1.0 - LAND.layer_terms
    limits = Budget(latency_ms=4.5, **{"web.latency_ms": 4.5})
    problem = Problem(Model(), limits, {"web": reverse})
    one = STRATEGIES.load("evolution")
    plan, asked = Plan(one, one.options(), 0, Effort(60)), []

    def measure(arch):
        asked.append(arch.tobytes())
        here = float(LAND.upper_ms(arch[None])[0])
        return {"latency_ms": here, "web.latency_ms": 1.05 * (8.0 - here)}

    outcome = search(problem, Judge(), plan, measure=measure)
    assert set(outcome.measured) == {"latency_ms", "web.latency_ms"}
    assert all(ms <= 4.5 for ms in outcome.measured.values())
    row = row_of(outcome.best)
    assert outcome.best.costs == {"web.latency_ms": float(reverse.upper_ms(row)[0])}
    assert 3.5 <= LAND.upper_ms(row)[0] <= 4.5
    tight = problem.within(Budget(latency_ms=3.9, **{"web.latency_ms": 3.9}))
    with pytest.raises(InfeasibleBudgetError, match="all limits at once"):
        tight.require_reachable(np.random.default_rng(0))
    with pytest.raises(UnknownNameError, match="phone"):
        problem.within(Budget(**{"phone.latency_ms": 1.0})).admits(row)


class Throughput(Latency):
    """Networks a second: its limit is the least that is wanted."""

    name, at_least = "fps", True

    def upper(self, archs):
        return 1e3 / self.model.upper_ms(archs)

    predict = upper


class WithThroughput(Problem):
    """Knows one cost more."""

    def cost(self, name):
        return Throughput(self.model) if name == "fps" else super().cost(name)


def test_a_front_over_what_is_wanted_to_be_much_is_that_over_its_inverse():
    archs = LAND.everything[::97]
    history = History(archs, LAND.accuracies(archs))
    problem = WithThroughput(Model())
    by_time, trade_off = front_of(history, problem, ("latency_ms",))
    by_rate, other = front_of(history, problem, ("fps",))
    assert len(by_time) > 5
    assert [p.architecture for p in by_rate] == [p.architecture for p in by_time]
    for one, same in zip(by_time, by_rate, strict=True):
        assert same.costs[0] == pytest.approx(1e3 / one.costs[0])
    assert other.worst[0] == pytest.approx(1e3 / trade_off.worst[0])
    assert other.worst[0] == pytest.approx(min(1e3 / LAND.upper_ms(archs)))
    assert Throughput.share(50, 100) == Latency.share(2, 1) == 2
