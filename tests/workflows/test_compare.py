"""Strategies side by side, on real images, from nothing to the table."""

from __future__ import annotations

import json

import numpy as np
import pytest

import deploynas as dn
from deploynas.data.sources import load_digits
from deploynas.errors import InfeasibleBudgetError, InvalidInputError, UnknownNameError
from deploynas.profile import LatencyModel
from deploynas.search import Budget, Problem
from deploynas.train import Recipe
from deploynas.workflows import candidates, trainings
from deploynas.workflows import compare as workflow
from deploynas.workflows.compare_table import Comparison, Settings, Winner, rows_of, welch
from deploynas.workflows.executor import Workers
from deploynas.workflows.target import Target, Tell
from deploynas.workflows.trainings import Trained

CELLS = "darts-small:channels=4,cells=3,nodes=1,operations=skip_connect+max_pool_3x3+sep_conv_3x3"
RECIPE = Recipe(epochs=0.5, batch_size=64, learning_rate=0.1)


@pytest.fixture(scope="module")
def digits():
    return load_digits((), seed=0, max_size=64)


@pytest.fixture(scope="module")
def space(digits):
    return dn.space("proxyless-small", digits.num_classes, digits.channels, [16])


@pytest.fixture(scope="module")
def profile(space, board_profile, tmp_path_factory):
    path = tmp_path_factory.mktemp("profiles") / "board.json"
    board_profile(space).write(path)
    return path


@pytest.fixture(scope="module")
def budget(space, profile):
    model = LatencyModel(space, dn.DeviceProfile.load(profile))
    return Budget(latency_ms=float(np.median(model.upper_ms(space.uniform()))))


def settings(space, budget, strategies=("one-shot", "proxyless"), **changes):
    own = {
        "num_seeds": 2, "budget": budget, "evaluator": "inherited", "num_evaluations": 4,
        "supernet_epochs": 0.2, "recipe": RECIPE, **changes,
    }  # fmt: skip
    return workflow.checked(Settings(strategies=strategies or (), **own), space)


def run(space, digits, profile, folder, given, **changes):
    notes: list[str] = []
    tell = Tell(note=notes.append)
    found = workflow.compare(
        space, digits, Target(profile), folder, given, tell=tell, **changes
    )  # fmt: skip
    return found, notes


@pytest.mark.long
def test_a_comparison_stops_resumes_and_trains_nothing_twice(
    space, digits, profile, budget, tmp_path, monkeypatch
):
    given = settings(space, budget)
    assert given.strategies == ("random", "one-shot", "proxyless")
    stopped, notes = run(space, digits, profile, tmp_path, given, max_minutes=1e-9)
    assert not stopped.complete
    assert not stopped.winners
    assert any("minutes" in note for note in notes)
    found, _ = run(space, digits, profile, tmp_path, given)
    assert found.complete
    assert [row.strategy for row in found.rows] == list(given.strategies)
    for winner in found.winners:
        assert 0 < winner.test <= 1
        assert (winner.cheap is None) == (winner.strategy != "random")
        assert winner.train_seconds > 0
        row = space.encode([winner.architecture])
        model = LatencyModel(space, dn.DeviceProfile.load(profile))
        assert Problem(model, budget).admits(row).all()
    assert set(found.supernet_seconds) == {"sandwich", "single-path"}
    random, *others = found.rows
    assert random.over_random is None
    for row in others:
        own = [w.test for w in found.winners if w.strategy == row.strategy]
        base = [w.test for w in found.winners if w.strategy == "random"]
        assert row.over_random == pytest.approx(np.mean(own) - np.mean(base))
        assert row.num_trained == 2
        assert row.seconds > 0
    assert Comparison.read(Comparison.file_in(tmp_path)) == found

    def never(*args, **kwargs):
        raise AssertionError("done before")

    monkeypatch.setattr(trainings, "train_network", never)
    monkeypatch.setattr(workflow, "train", never)
    monkeypatch.setattr(workflow, "run_search", never)
    again, _ = run(space, digits, profile, tmp_path, given)
    assert again == found


@pytest.mark.long
def test_candidates_that_are_trained_are_trained_once(
    space, digits, profile, budget, tmp_path, monkeypatch
):
    recipe = RECIPE.model_copy(update={"epochs": 5.0})
    given = settings(
        space, budget, ("evolution",), evaluator="halving", num_seeds=1, recipe=recipe
    )
    found, _ = run(space, digits, profile, tmp_path, given)
    assert found.complete
    assert not found.supernet_seconds
    # its first schedule stands for the cheap evaluation, where there is a shorter one
    rungs = candidates.rungs_of(recipe, digits, halving=True)
    assert len(rungs) > 1
    assert all(w.cheap is not None for w in found.winners)
    # a winner was trained in full by its search: that training stands in the table
    keys = {f.stem for f in (tmp_path / "trained").glob("*.json")}
    for w in found.winners:
        nodes = space.layers(space.encode([w.architecture])[0])
        assert trainings.key_of(nodes, digits, recipe) in keys
        assert w.search_seconds >= w.train_seconds

    def never(*args, **kwargs):
        raise AssertionError("done before")

    monkeypatch.setattr(trainings, "train_network", never)
    assert run(space, digits, profile, tmp_path, given)[0] == found


def test_every_strategy_that_fits_is_compared_where_none_is_named(space, budget):
    assert settings(space, budget, None).strategies == (
        "random", "ofa", "evolution", "pareto", "predictor", "one-shot", "proxyless", "darts",
    )  # fmt: skip
    with pytest.raises(UnknownNameError, match="evaluator"):
        settings(space, budget, None, evaluator="guess")


@pytest.mark.long
def test_several_workers_train_what_one_does(space, digits, tmp_path):
    nodes = [space.layers(arch) for arch in space.uniform()[:2]]
    jobs = [(n, RECIPE) for n in [*nodes, nodes[0]]]  # one of them twice

    def trained(folder, num):
        return trainings.train_all(
            jobs, digits, tmp_path / folder, Workers(num), lambda: False, lambda text, share: None
        )

    several = trained("two", 2)
    files = sorted((tmp_path / "two").iterdir())
    assert len(files) == 2
    assert all(json.loads(f.read_text())["schema"] == Trained.SCHEMA for f in files)
    assert several[0] == several[2]
    one = trained("one", 1)
    for a, b in zip(one, several, strict=True):
        assert abs(a.test - b.test) < 0.2  # sums in another order, hardly trained


@pytest.fixture
def cells(digits, board_profile, tmp_path):
    """A space that is trained in a moment, its profile and a budget."""
    space = dn.space(CELLS, digits.num_classes, digits.channels, [8])
    path = tmp_path / "cells.json"
    board_profile(space).write(path)
    model = LatencyModel(space, dn.DeviceProfile.load(path))
    return space, path, Budget(latency_ms=float(np.median(model.upper_ms(space.everything()))))


@pytest.mark.long
def test_nothing_is_reused_under_another_job(cells, digits, tmp_path, monkeypatch):
    """A comparison that was stopped, then asked for with another budget, profile, recipe, ..."""
    space, profile, budget = cells

    def asked(**changes):
        own = {"strategies": ("random",), "num_seeds": 1, "supernet_epochs": 0.1, **changes}
        return settings(space, own.pop("budget", budget), **own)

    searches = []
    own = workflow.run_search
    monkeypatch.setattr(workflow, "run_search", lambda *a: (searches.append(a[0]), own(*a))[1])
    first, _ = run(space, digits, profile, tmp_path / "run", asked())
    (tmp_path / "run" / "comparison.json").unlink()  # killed before it was written
    other = dn.DeviceProfile.load(profile)
    key, record = next(iter(other.layers.items()))
    samples = record.samples.model_copy(update={"ms": ((0.5,) * 3,) * 2})
    slower = {key: record.model_copy(update={"samples": samples})}
    elsewhere = tmp_path / "other.json"
    other.model_copy(update={"layers": {**other.layers, **slower}}).write(elsewhere)
    longer = RECIPE.model_copy(update={"epochs": 0.6})
    jobs = {first.winners[0].job}
    for path, given in (
        (profile, asked(budget=Budget(latency_ms=budget.latency_ms * 0.9))),
        (elsewhere, asked()),
        (profile, asked(num_evaluations=5)),
        (profile, asked(supernet_epochs=0.2)),
        (profile, asked(evaluator="training")),
        (profile, asked(evaluator="training", recipe=longer)),
    ):
        found, _ = run(space, digits, path, tmp_path / "run", given)
        assert found.complete
        jobs.add(found.winners[0].job)
        model = LatencyModel(space, dn.DeviceProfile.load(path))
        row = space.encode([found.winners[0].architecture])
        assert Problem(model, given.budget).admits(row).all()
    assert len(jobs) == len(searches) == 7
    # the first one is still there; a recipe of winners alone trains them, and searches nothing
    again, _ = run(space, digits, profile, tmp_path / "run", asked())
    assert again.winners[0].job == first.winners[0].job
    assert again.winners[0].test == first.winners[0].test
    retrained, _ = run(space, digits, profile, tmp_path / "run", asked(recipe=longer))
    assert retrained.winners[0].job == first.winners[0].job
    assert retrained.winners[0].train_seconds != first.winners[0].train_seconds
    assert len(searches) == 7


@pytest.mark.slow
def test_every_seed_has_a_supernet_of_its_own(cells, digits, tmp_path):
    space, profile, budget = cells
    given = settings(space, budget, ("random",), supernet_epochs=0.1)
    found, _ = run(space, digits, profile, tmp_path / "run", given)
    assert [w.seed for w in found.winners] == [0, 1]
    folders = sorted((tmp_path / "run" / "supernets").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == [
        "single-path-seed0", "single-path-seed1",
    ]  # fmt: skip
    first, second = ((folder / "supernet.safetensors").read_bytes() for folder in folders)
    assert first != second


def test_seconds_add_up_over_processes(tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, 100.0, 103.0, 200.0, 207.0])
    monkeypatch.setattr(trainings.time, "monotonic", lambda: next(clock))
    with trainings.clocked(tmp_path, lambda text, share: None):
        pass

    def interrupted():
        with trainings.clocked(tmp_path, lambda text, share: None) as (_, more):
            more.append(1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with trainings.clocked(tmp_path, lambda text, share: None):
        pass
    assert trainings.Spent.read(tmp_path / "cost.json").seconds == 5 + 3 + 1 + 7


def test_an_impossible_budget_ends_before_any_work(space, digits, profile, tmp_path):
    given = settings(space, Budget(latency_ms=1e-6))
    with pytest.raises(InfeasibleBudgetError, match="lowest reachable"):
        run(space, digits, profile, tmp_path, given)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_compared(space, budget):
    with pytest.raises(UnknownNameError, match="did you mean 'evolution'"):
        settings(space, budget, ("evolutoin",))
    with pytest.raises(InvalidInputError, match="fits random|fits ofa"):
        settings(dn.space("mobile-small"), budget, ("proxyless",))
    with pytest.raises(InvalidInputError, match="named twice"):
        settings(space, budget, ("ofa", "ofa"))
    with pytest.raises(InvalidInputError, match="four evaluations"):
        settings(space, budget, ("ofa",), num_evaluations=0)


def winner(strategy, seed, test, latency=0.9):
    return Winner(
        strategy=strategy, seed=seed, architecture={}, search_seconds=10.0, test=test,
        predicted_latency_ms=0.9, latency_ms=latency, latency_low_ms=latency * 0.99,
        latency_high_ms=latency * 1.01,
    )  # fmt: skip


def test_the_table_says_what_is_noise():
    given = Settings(
        strategies=("random", "ofa", "proxyless"), num_seeds=3, budget=Budget(latency_ms=1.0),
        evaluator="inherited", num_evaluations=4, supernet_epochs=None, recipe=RECIPE,
    )  # fmt: skip
    winners = [winner("random", s, t) for s, t in enumerate((0.70, 0.71, 0.72))]
    winners += [winner("ofa", s, t, 1.2) for s, t in enumerate((0.80, 0.81, 0.82))]
    winners += [winner("proxyless", s, t) for s, t in enumerate((0.69, 0.72, 0.75))]
    random, ofa, proxyless = rows_of(winners, given)
    assert (random.mean, random.deviation) == pytest.approx((0.71, 0.01))
    assert (random.differs, ofa.differs, proxyless.differs) == (None, True, False)
    assert (random.within, ofa.within) == (True, False)
    assert (ofa.seconds, proxyless.seconds) == (10.0, 10.0)
    # by hand: both variances 1e-4, 3 each, so 4 degrees of freedom: 2.776 * sqrt(2e-4 / 3)
    assert ofa.interval == pytest.approx(2.776 * (2e-4 / 3) ** 0.5, rel=1e-3)
    assert welch([0.5], [0.4, 0.5]) is None
