"""DARTS: all candidates at once, weighted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from deploynas.search.strategy import Gradient, Options
from deploynas.spaces import SearchSpace

if TYPE_CHECKING:
    from deploynas.search.darts import DartsRecipe, MixturesLearner


class DartsOptions(Options):
    """How the mixtures are learned.

    Attributes:
        order: ``first``, or ``second``: through an unrolled weight step.
        gate: ``softmax`` over an edge's operations, or ``sigmoid``, with which none has to lose
            for another to win.
        zero_one: With sigmoid gates: weight of the loss that drives them to 0 or 1 (Chu et al.
            2020, equation 5).
        prune: Share of the candidates of every edge that are pruned on the way, weakest first.
        max_skips: Of the derived normal cell; None for no limit.
        latency_weight: Of what E[latency] exceeds the limit by, relative.
        rate, weight_decay: Adam's, with beta1 = 0.5, as published.
    """

    order: Annotated[
        Literal["first", "second"], Field(description="Of the gradient: first, second.")
    ] = "first"
    gate: Annotated[
        Literal["softmax", "sigmoid"], Field(description="softmax, or sigmoid as in Fair DARTS.")
    ] = "softmax"
    zero_one: Annotated[
        float, Field(ge=0, description="With sigmoid gates: weight of what drives them to 0 or 1.")
    ] = 1.0
    prune: Annotated[
        float, Field(ge=0, lt=1, description="Share of candidates that are pruned on the way.")
    ] = 0.0
    max_skips: Annotated[
        int | None, Field(ge=0, description="Skip connections in the normal cell; no limit.")
    ] = None
    latency_weight: Annotated[
        float, Field(ge=0, description="Of what the expected cost exceeds its limit by.")
    ] = 0.5
    rate: Annotated[float, Field(ge=0, description="Learning rate of the mixtures.")] = 3e-3
    weight_decay: Annotated[float, Field(ge=0, description="Of the mixtures.")] = 1e-3


class Darts(Gradient):
    """DARTS (Liu, Simonyan and Yang 2019), with what was found against its collapse."""

    name = "darts"
    help = "DARTS: all candidates at once, weighted; over cells or candidate operations."
    options = DartsOptions
    home = "darts-small"

    def misfit(self, space: SearchSpace) -> str | None:
        """It searches candidate operations or cells at one resolution."""
        if space.mixture is not None and len(space.resolutions) == 1:
            return None
        return "which searches candidate operations or cells at one resolution"

    def recipe(self, options: DartsOptions, seed: int) -> DartsRecipe:
        """Ten passes."""
        from deploynas.search.darts import DartsRecipe

        return DartsRecipe(seed=seed, architecture=options)

    def learner(self, space: SearchSpace, recipe: DartsRecipe) -> MixturesLearner:
        """Mixtures of the space's edges or blocks."""
        from deploynas.search.darts import MixturesLearner

        return MixturesLearner(space, recipe)

    def step_cost(self, space: SearchSpace) -> float:
        """All candidates run, over one a place."""
        return space.candidates_at_once


STRATEGY = Darts()
