"""The promises that all costs share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from deploynas.costs import COSTS, Cost
from deploynas.errors import InvalidInputError
from deploynas.spaces import SearchSpace
from deploynas.testing.report import promises, require


@promises
def check_cost(kind: type[Cost], space: SearchSpace, model: Any = None) -> None:
    """Check a cost on the networks of a space.

    Finite and positive; its ends hold what is drawn; as a sum over layers it is the sum; what it
    prints for people is a number with a unit that it reads again; nonsense is refused.

    Args:
        kind: The cost.
        space: Whose networks.
        model: Latency, for a cost that needs it.

    Raises:
        AssertionError: One of them is not as promised.
    """
    name = kind.name
    rng = np.random.default_rng(0)
    given: Any = model or SimpleNamespace(space=space)
    cost = kind(given)
    archs = space.sample_networks(200, rng)
    upper, predicted = cost.upper(archs), cost.predict(archs)
    require(upper.shape == predicted.shape == (200,), f"{name}: not one value a network")
    require(bool(np.isfinite(upper).all() and (upper > 0).all()), f"{name}: not a positive number")
    order = -1.0 if kind.at_least else 1.0
    require(bool((order * predicted <= order * upper).all()), f"{name}: the bound is no bound")
    ends = cost.upper(cost.ends(rng))
    slack = 1e-9 * float(ends.max())
    inside = (upper >= ends.min() - slack) & (upper <= ends.max() + slack)
    if space.size > 10_000 or cost.layer_sum(1.0) is not None:
        require(bool(inside.mean() > 0.99), f"{name}: networks lie beyond its ends")
    limit = float(np.median(upper))
    kept = cost.keeps(archs, limit)
    require(bool((kept == (order * upper <= order * limit)).all()), f"{name}: keeps() differs")
    one = cost.layer_sum(limit)
    if one is not None:
        sums = space.sum_over_layers(archs, one.values) + one.intercept
        below = sums <= one.limit * (1 + 1e-12)
        require(bool((below == kept).mean() > 0.99), f"{name}: as a sum over layers it differs")
        back = np.array([one.unit(float(value)) for value in sums[:20]])
        require(bool(np.allclose(back, predicted[:20], rtol=1e-6)), f"{name}: unit() differs")
    _check_text(kind, limit)


def _check_text(kind: type[Cost], limit: float) -> None:
    name = kind.name
    require(bool(kind.help), f"{name} has no help")
    require(COSTS.load(name) is kind, f"{name} is not found by its name")
    require(kind.suffixes.get("") == 1, f"{name}: a number without a unit is not one of its own")
    shown = kind.format(limit)
    number = float(shown.split()[0].replace(",", ""))
    require(abs(number * kind.shown[1] / limit - 1) < 1e-3, f"{name}: {shown}")
    for suffix, worth in kind.suffixes.items():
        value = kind.parse(f"2{suffix}", name)
        require(value == 2 * worth, f"{name}: 2{suffix} is read as {value}")
    for text in ("", "x", "-1", "0", "nan", "inf", "3parsec"):
        try:
            kind.parse(text, name)
        except InvalidInputError:
            continue
        require(False, f"{name}: {text!r} is read as a limit")
