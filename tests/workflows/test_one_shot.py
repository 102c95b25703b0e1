"""One-shot: single paths, a search on inherited weights, the best few trained from scratch."""

from __future__ import annotations

import numpy as np
import pytest

import deploynas as dn
from deploynas.data.sources import load_digits
from deploynas.nn import MixedNetwork
from deploynas.profile import LatencyModel
from deploynas.search import STRATEGIES, Budget, Effort, Plan, Problem, SearchResult
from deploynas.train import Batches, accuracy
from deploynas.workflows import inherited, trainings
from deploynas.workflows.chosen import open_saved
from deploynas.workflows.exporting import export
from deploynas.workflows.search import search as run_search
from deploynas.workflows.sources import Training, source_of
from deploynas.workflows.target import Target, Tell


@pytest.fixture(scope="module")
def digits():
    return load_digits((), seed=0, max_size=64)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    ["one-shot", "darts-small:channels=4,cells=3,nodes=2,operations=skip_connect+sep_conv_3x3"],
)
def test_from_images_to_a_network_that_can_be_exported(
    name, digits, board_profile, tmp_path, monkeypatch
):
    space = dn.space(name, digits.num_classes, digits.channels, [16])
    path = tmp_path / "board.json"
    board_profile(space).write(path)
    model = LatencyModel(space, dn.DeviceProfile.load(path))
    budget = Budget(latency_ms=float(np.median(model.upper_ms(space.uniform()))))

    one, run = STRATEGIES.load("one-shot"), tmp_path / "run"

    def search():
        how = Training(epochs=0.3)
        source = source_of(one, one.options(), space, digits, how, run, Tell())
        plan = Plan(one, one.options(), 0, Effort(4))
        return run_search(budget, plan, source, Target(path), run, Tell())

    result = search()
    arch = space.encode([result.best.architecture])
    assert Problem(model, budget).admits(arch).all()
    trained = [
        trainings.Trained.read(file) for file in (tmp_path / "run" / "trained").glob("*.json")
    ]
    assert 1 <= len(trained) <= one.num_retrained
    assert result.best.accuracy == max(one.validation for one in trained)
    chosen = open_saved(tmp_path / "run", result, digits)
    assert chosen.weights == "from-scratch"
    batches = Batches(digits, digits.val, next(chosen.network.parameters()).device)
    assert accuracy(chosen.network, batches, 16) == pytest.approx(result.best.accuracy, abs=0.01)
    manifest = export(result, chosen, tmp_path / "export")
    assert manifest.parity_max_abs_diff < 1e-3

    def never(*args, **kwargs):
        raise AssertionError("done before")

    monkeypatch.setattr(trainings, "train_network", never)
    monkeypatch.setattr(inherited, "train", never)
    again = search()
    assert again.best == result.best
    assert SearchResult.read(SearchResult.file_in(tmp_path / "run")) == again


def test_choice_blocks_have_weights_of_their_own(digits):
    space = dn.space("one-shot", 10, 1, [16])
    network = MixedNetwork(space)
    assert all(part.elastic is None for part in network.mixed)
    assert all(len(part.options) == 4 for part in network.mixed)
    assert space.size == 4 ** len(space.blocks)
    strides = [layer.stride for layer in space.layer_table if layer.kind == "sep_conv"]
    assert 2 in strides  # in the first of the two convolutions alone
    archs = np.concatenate([space.smallest(), space.sample(20, np.random.default_rng(0))])
    halvings = [sum(n.layer.stride == 2 for n in space.layers(arch)) for arch in archs]
    assert set(halvings) == {halvings[0]}
