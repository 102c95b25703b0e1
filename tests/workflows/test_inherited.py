"""A search on a supernet's weights: opened, trained, refused; judged here and in workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deploynas as dn
from deploynas.data.sources import load_digits
from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.journal import Journal
from deploynas.profile import LatencyModel
from deploynas.search import STRATEGIES, Budget, Effort, Plan
from deploynas.search.evaluations import Evaluation
from deploynas.train import SupernetEvaluator, SupernetRecipe
from deploynas.workflows import inherited, supernets
from deploynas.workflows.executor import Workers
from deploynas.workflows.inherited import Inherited, require_space, space_trained, trained_at
from deploynas.workflows.search import search
from deploynas.workflows.target import Target, Tell

pytestmark = pytest.mark.slow

CELLS = "darts-small:channels=4,cells=3,nodes=1,operations=skip_connect+max_pool_3x3+sep_conv_3x3"
RECIPE = SupernetRecipe(epochs=0.3, schedule="single-path")


@pytest.fixture(scope="module")
def digits():
    return load_digits((), seed=0, max_size=64)


@pytest.fixture(scope="module")
def space(digits):
    return dn.space(CELLS, digits.num_classes, digits.channels, [8])


@pytest.fixture(scope="module")
def trained(space, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("supernet")
    supernets.train(space, digits, folder, RECIPE, lambda text, share: None)
    return folder


@pytest.fixture
def target(space, board_profile, tmp_path):
    path = tmp_path / "board.json"
    board_profile(space).write(path)
    return Target(path)


def searched(source, target, run, **told):
    model = LatencyModel(source.space, dn.DeviceProfile.load(target.profile))
    limit = float(np.median(model.upper_ms(source.space.everything())))
    ofa = STRATEGIES.load("ofa")
    plan = Plan(ofa, ofa.options(), 0, Effort(9, source.at_once))
    return search(Budget(latency_ms=limit), plan, source, target, run, Tell(**told))


@pytest.mark.long
def test_workers_judge_as_this_process_does(space, digits, trained, target, tmp_path):
    torch.set_num_threads(before := torch.get_num_threads())
    source = Inherited(space, digits, trained, None, workers=Workers(2))
    shares = []
    result = searched(source, target, tmp_path / "run", progress=lambda t, s: shares.append(s))
    with Journal(tmp_path / "run" / "evaluations.jsonl", Evaluation, "run") as journal:
        kept = journal.entries
    quick = [one for one in kept if one.fidelity == "quick"]
    assert len(quick) >= 9
    evaluator = SupernetEvaluator(supernets.open_supernet(trained, digits).network, digits, space)
    assert {one.evaluator for one in kept} == {evaluator.identity}
    archs = space.encode([one.architecture for one in quick])
    here = np.array(list(evaluator.quick(archs)))
    # sums in another order may move an image or two
    assert np.abs(here - [one.accuracy for one in quick]).max() < 0.02
    assert result.best.accuracy == pytest.approx(
        evaluator.final(space.encode([result.best.architecture]))[0], abs=0.02
    )
    assert shares[-1] <= 1
    assert torch.get_num_threads() == before


def test_a_supernet_that_was_trained_otherwise_is_refused(space, digits, trained):
    other = RECIPE.model_copy(update={"epochs": 0.5, "learning_rate": 0.1})
    with pytest.raises(InvalidInputError, match="epochs 0.3, not 0.5, learning_rate 0.2, not 0.1"):
        Inherited(space, digits, trained, other)
    assert Inherited(space, digits, trained, RECIPE).space.spec == space.spec
    assert Inherited(space, digits, trained, None).identity.startswith("inherited ")
    with pytest.raises(MissingFileError):
        Inherited(space, digits, trained / "nowhere", None)


def test_a_supernet_of_another_space_is_refused(space, digits, trained):
    require_space(trained, space)
    require_space(trained, space.with_resolutions([16]))
    with pytest.raises(InvalidInputError, match="a supernet of darts-small.*not of mobile-small"):
        require_space(trained, dn.space("mobile-small"))
    with pytest.raises(InvalidInputError, match="not of mobile-plain"):
        Inherited(dn.space("mobile-plain", 10, 1, [8]), digits, trained, RECIPE)


@pytest.mark.slow
def test_what_is_there_is_not_trained_again(space, digits, trained, target, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("trained before")

    monkeypatch.setattr(inherited, "train", never)
    notes = []
    source = Inherited(space, digits, trained, RECIPE)
    first = searched(source, target, tmp_path / "run", note=notes.append)
    assert any("trained before: 0.3 epochs, seed 0" in text for text in notes)
    again = searched(Inherited(space, digits, trained, None), target, tmp_path / "run")
    assert again.best == first.best
    assert again.job != first.job  # of a recipe, and of weights that somebody made


def test_what_a_supernet_was_trained_at(trained, space, digits):
    assert trained_at(trained) == trained_at(trained, ["8"]) == ["8"]
    with pytest.raises(InvalidInputError, match="was trained at 8 px, not at 24"):
        trained_at(trained, ["8", "24"])
    assert space_trained(trained) == space.argument
    assert Inherited(space, digits, trained, None).space.resolutions == (8,)


def test_a_supernet_of_several_resolutions_is_searched_at_some(digits, tmp_path):
    whole = dn.space("mobile-small", digits.num_classes, digits.channels, [20, 24])
    few = RECIPE.model_copy(update={"epochs": 0.05, "schedule": "sandwich"})
    supernets.train(whole, digits, tmp_path, few, lambda text, share: None)
    part = Inherited(whole.with_resolutions([24]), digits, tmp_path, None)
    assert part.space.resolutions == (24,)
