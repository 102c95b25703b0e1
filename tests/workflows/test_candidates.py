"""Candidates that are trained, in full or by successive halving, and the search over them."""

from __future__ import annotations

import numpy as np
import pytest

import deploynas as dn
from deploynas.data.sources import load_digits
from deploynas.profile import LatencyModel
from deploynas.search import STRATEGIES, Budget, Effort, Plan, Problem, SearchResult
from deploynas.train import Batches, Recipe, accuracy
from deploynas.workflows import candidates, trainings
from deploynas.workflows.candidates import ETA, Candidates, TrainedCandidates, rungs_of
from deploynas.workflows.chosen import open_saved
from deploynas.workflows.executor import Workers
from deploynas.workflows.search import search as run_search
from deploynas.workflows.target import Target, Tell

NAME = "darts-small:channels=4,cells=3,nodes=1,operations=skip_connect+max_pool_3x3+sep_conv_3x3"
RECIPE = Recipe(epochs=4.5, batch_size=64, learning_rate=0.1)


@pytest.fixture(scope="module")
def digits():
    return load_digits((), seed=0, max_size=64)


@pytest.fixture(scope="module")
def space(digits):
    return dn.space(NAME, digits.num_classes, digits.channels, [8])


@pytest.fixture(scope="module")
def profile(space, board_profile, tmp_path_factory):
    path = tmp_path_factory.mktemp("profiles") / "board.json"
    board_profile(space).write(path)
    return path


@pytest.fixture(scope="module")
def model(space, profile):
    return LatencyModel(space, dn.DeviceProfile.load(profile))


@pytest.fixture(autouse=True)
def short_rungs(monkeypatch):
    monkeypatch.setattr(candidates, "LEAST_STEPS", 5)


@pytest.fixture
def budget(model, space):
    return Budget(
        latency_ms=float(np.median(model.upper_ms(space.sample(99, np.random.default_rng(0)))))
    )


def counted(monkeypatch):
    """Epochs of every training from now on."""
    epochs = []
    own = trainings.train_network

    def train(network, dataset, recipe, **changes):
        epochs.append(recipe.epochs)
        return own(network, dataset, recipe, **changes)

    monkeypatch.setattr(trainings, "train_network", train)
    return epochs


@pytest.mark.long
def test_what_is_behind_stops_early(space, digits, tmp_path, monkeypatch):
    epochs = counted(monkeypatch)
    archs = space.sample(40, np.random.default_rng(0))
    archs = np.unique(archs, axis=0)[:9]
    judge = TrainedCandidates(space, digits, RECIPE, tmp_path, halving=True)
    assert [r.epochs for r in judge.rungs] == [0.5, 1.5, 4.5]
    scores = judge.quick(archs)
    assert sorted(epochs) == [0.5] * 9 + [1.5] * 3 + [4.5]
    # by hand: the best third of each rung goes on
    first = np.array([_score(space, digits, arch, judge.rungs[0], tmp_path) for arch in archs])
    ahead = np.argsort(-first, kind="stable")[:3]
    second = {i: _score(space, digits, archs[i], judge.rungs[1], tmp_path) for i in ahead}
    best = max(second, key=second.get)
    # one scale: what a predictor is fitted to is the first rung of every candidate
    assert np.array_equal(scores, first)
    # who reached further is ranked by what it reached, and comes first
    order = judge.promising(archs, scores)
    assert order[0] == best
    assert order[1:3] == sorted(set(ahead) - {best}, key=lambda i: -second[i])
    assert order[3:] == sorted(set(range(9)) - set(ahead), key=lambda i: -first[i])
    assert judge.is_trained(archs[best])
    assert len(epochs) == 13  # asking for the best again trained nothing
    assert judge.seconds == pytest.approx(
        sum(trainings.Trained.read(f).seconds for f in tmp_path.glob("*.json"))
    )
    # one more: it goes on only if it is among the best third of ten
    (late,) = space.largest()
    judge.quick(late[None])
    assert len(epochs) in (14, 15, 16)


def _score(space, digits, arch, recipe, folder):
    key = trainings.key_of(space.layers(arch), digits, recipe)
    return trainings.Trained.read(folder / f"{key}.json").validation


def test_rungs_of_too_few_steps_are_left_out(digits):
    short = rungs_of(RECIPE.model_copy(update={"epochs": 0.6}), digits, halving=True)
    assert [r.epochs for r in short] == [0.6]
    assert len(rungs_of(RECIPE, digits, halving=False)) == 1
    assert RECIPE.epochs / ETA**2 == pytest.approx(
        rungs_of(RECIPE, digits, halving=True)[0].epochs
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("strategy", "halving", "workers", "num"),
    [("evolution", True, 1, 8), ("ofa", False, 1, 8), ("pareto", False, 2, 8)],
)
def test_a_search_that_was_killed_goes_on_and_ends_in_a_network(
    strategy, halving, workers, num, space, digits, profile, model, budget, tmp_path, monkeypatch
):
    recipe = RECIPE.model_copy(update={"epochs": 1.5})
    epochs = counted(monkeypatch)
    notes = []

    def search(folder, on_progress=lambda text, share: None):
        source = Candidates(space, digits, recipe, halving=halving, workers=Workers(workers))
        one = STRATEGIES.load(strategy)
        plan = Plan(one, one.options(), 0, Effort(num, workers), beside=False)
        tell = Tell(on_progress, notes.append)
        return run_search(budget, plan, source, Target(profile), tmp_path / folder, tell)

    class Killed(Exception):
        """Stands for the end of the process."""

    def kill(text, share):
        if text.startswith((f"{num} candidates", f"{num - 1} candidates")):
            raise Killed

    with pytest.raises(Killed):
        search("run", kill)
    done = len(list((tmp_path / "run" / "trained").glob("*[0-9a-f].json")))
    assert done >= 2
    result = search("run")
    whole = search("other")
    assert result.best.architecture == whole.best.architecture
    assert result.num_evaluations == num
    assert result.largest is None  # nothing beside it was trained
    arch = space.encode([result.best.architecture])
    assert Problem(model, budget).admits(arch).all()
    assert any(f"{num} candidates" in note for note in notes)
    kept = {
        folder: {f.stem for f in (tmp_path / folder / "trained").glob("*.json")}
        for folder in ("run", "other")
    }
    assert kept["run"] == kept["other"]
    if workers == 1:  # in this process: one training was cut off, and gone on with
        assert len(epochs) == 2 * len(kept["run"]) + 1
    chosen = open_saved(tmp_path / "run", result, digits)
    assert chosen.weights == "from-scratch"
    batches = Batches(digits, digits.val, next(chosen.network.parameters()).device)
    assert accuracy(chosen.network, batches, 8) == pytest.approx(result.best.accuracy, abs=0.01)
    assert SearchResult.read(SearchResult.file_in(tmp_path / "run")) == result
    seconds = trainings.Spent.read(tmp_path / "run" / "cost.json").seconds
    assert seconds > 0


@pytest.mark.long
def test_several_costs_on_the_front(space, digits, profile, tmp_path):
    recipe = RECIPE.model_copy(update={"epochs": 0.3})
    source, pareto = Candidates(space, digits, recipe, halving=False), STRATEGIES.load("pareto")
    options = pareto.options(costs=("latency_ms", "params"))
    plan = Plan(pareto, options, 0, Effort(10), beside=False)
    budget = Budget(latency_ms=1e9)
    result = run_search(budget, plan, source, Target(profile), tmp_path, Tell())
    assert result.options == {"costs": ["latency_ms", "params"]}
    assert result.trade_off.costs == ("latency_ms", "params")
    assert 0 < result.trade_off.hypervolume <= 1
    points = result.front
    archs = space.encode([p.architecture for p in points])
    for point, arch in zip(points, archs, strict=True):
        assert point.costs[1] == space.params(arch[None])[0]
        for other in points:
            beaten = other.accuracy >= point.accuracy and all(
                a <= b for a, b in zip(other.costs, point.costs, strict=True)
            )
            assert other is point or not beaten
