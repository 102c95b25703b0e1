"""Costs: what ships, and one of another package whose limit is the least that is wanted."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from deploynas import plugins, spaces
from deploynas.costs import COSTS
from deploynas.errors import InfeasibleBudgetError, InvalidInputError, UnknownNameError
from deploynas.profile import LatencyModel
from deploynas.search import STRATEGIES, Budget, Effort, Problem, explore
from deploynas.search.budget import budget_from
from deploynas.testing import check_cost

SPEED = """
from deploynas.costs import Cost, LayerSum

class Speed(Cost):
    name, help, at_least = "images_per_s", "Images a second, one after another.", True
    suffixes = {"": 1.0, "k": 1e3}
    shown = ("/s", 1.0)

    def upper(self, archs):
        return 1e3 / self.model.upper_ms(archs)

    def predict(self, archs):
        return 1e3 / self.model.predict_ms(archs)

    def ends(self, rng):
        return self.space.ends(self.model.layer_terms)
"""


@pytest.fixture(scope="module", params=["mobile-plain", "darts-small", "proxyless-small"])
def model(request, board_profile):
    space = spaces.space(request.param)
    space = space.with_resolutions(space.resolutions[-1:])
    return LatencyModel(space, board_profile(space))


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTS.names())
def test_what_ships_keeps_what_it_promises(name, model):
    check_cost(COSTS.load(name), model.space, model)


@pytest.fixture
def speed(tmp_path, monkeypatch):
    (tmp_path / "speed.py").write_text(SPEED)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("speed", None)
    one = EntryPoint("images_per_s", "speed:Speed", "deploynas.costs")
    own = plugins.entry_points
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: [one] if group == one.group else own(group=group)
    )
    yield importlib.import_module("speed").Speed
    COSTS.forget("images_per_s")


def test_a_limit_may_be_the_least_that_is_wanted(speed, model):
    check_cost(speed, model.space, model)
    drawn = model.space.sample_networks(500, np.random.default_rng(0))
    rate = 1e3 / model.upper_ms(drawn)
    wanted = float(np.quantile(rate, 0.8))
    problem = Problem(model, Budget(images_per_s=wanted))
    assert problem.admits(drawn).mean() == pytest.approx(0.2, abs=0.01)
    strategy, rng = STRATEGIES.load("ofa"), np.random.default_rng(0)
    found = explore(
        strategy, strategy.options(), problem, lambda a: model.predict_ms(a) / 1e3, rng, Effort(40)
    )
    assert (1e3 / model.upper_ms(found.archs) >= wanted).all()
    ends = 1e3 / model.upper_ms(model.space.ends(model.layer_terms))
    assert problem.require_reachable(rng) == []
    slow = problem.within(Budget(images_per_s=float(ends.min())))
    assert slow.require_reachable(rng) == ["images_per_s"]
    with pytest.raises(InfeasibleBudgetError, match="the highest reachable is"):
        problem.within(Budget(images_per_s=1.01 * float(ends.max()))).require_reachable(rng)


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("macs=300M", {"macs": 3e8}),
        ("latency_ms=500us", {"latency_ms": 0.5}),
        ("latency_ms=1.5", {"latency_ms": 1.5}),
        ("latency_ms=2s", {"latency_ms": 2000.0}),
        ("weight_bytes=5MB", {"weight_bytes": 5e6}),
        ("peak_memory_bytes=1MiB", {"peak_memory_bytes": 2.0**20}),
        ("web.latency_ms=25ms", {"web.latency_ms": 25.0}),
        ("params=1.2e3k", {"params": 1.2e6}),
    ],
)
def test_limits_as_they_are_typed(typed, wanted):
    assert budget_from([typed]).limits == wanted


@pytest.mark.parametrize(
    ("typed", "kind", "said"),
    [
        ("macs", InvalidInputError, "NAME=VALUE"),
        ("macs=", InvalidInputError, "macs is a number, got ''"),
        ("macs=1..2", InvalidInputError, "is a number"),
        ("macs=-3", InvalidInputError, "positive number"),
        ("macs=1e999", InvalidInputError, "positive number"),
        ("macs=3m", InvalidInputError, "has no unit 'm' (it has k, M, G)"),
        ("web.latency=3", UnknownNameError, "did you mean 'latency_ms'"),
        ("flops=3", UnknownNameError, "unknown cost 'flops'"),
    ],
)
def test_limits_that_cannot_be(typed, kind, said):
    with pytest.raises(kind) as caught:
        budget_from([typed])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_budget_in_words():
    budget = budget_from(["macs=300M", "latency_ms=2", "web.latency_ms=9"])
    assert str(budget) == "latency_ms 2 ms, macs 300 M MACs, web.latency_ms 9 ms"
    assert Budget.model_validate_json(budget.model_dump_json()) == budget


def test_a_limit_whose_suffix_was_forgotten_is_guessed():
    assert COSTS.load("macs").meant(300, 1e8, 1e9) == "did you mean 300M?"
    assert COSTS.load("macs").meant(300, 1e3, 2e3) is None
