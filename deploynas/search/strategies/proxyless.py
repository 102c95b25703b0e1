"""ProxylessNAS: weights and architecture learned together on the task and the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from deploynas.search.strategy import Gradient, Options
from deploynas.spaces import SearchSpace

if TYPE_CHECKING:
    from deploynas.search.proxyless import PathsLearner, ProxylessRecipe

Update = Literal["two-path", "reinforce"]
LatencyLoss = Literal["adaptive", "sum", "product"]
LATENCY_WEIGHT = 0.3


class ProxylessOptions(Options):
    """How the architecture parameters are learned.

    Attributes:
        update: ``two-path`` (Cai et al. 2019, section 3.2.1), or ``reinforce`` (section 3.3.2).
        latency_loss: ``adaptive``: after every step the probabilities are projected towards those
            whose E[cost] is the limit; ``sum``: a fixed multiplier on E[cost]/limit (equation 6);
            ``product``: the loss times (E[cost]/limit)^weight, which, unlike a ratio of
            logarithms, holds below 1 ms as well.
        rate: Adam's, with beta1 = 0: no gradient, no momentum moves what was not sampled.
        share_weights: Whether the candidates of a block that differ in kernel size and width alone
            are parts of common weights, each of which learns at every step; as published each has
            its own, and learns when its path is drawn.
    """

    update: Annotated[Update, Field(description="Of the architecture: two-path, reinforce.")] = (
        "two-path"
    )
    latency_loss: Annotated[
        LatencyLoss, Field(description="How a limit steers: adaptive, sum, product.")
    ] = "adaptive"
    latency_weight: Annotated[
        float | None,
        Field(ge=0, description="Of the losses sum and product; 0.3. 0: the final choice alone."),
    ] = None
    rate: Annotated[float, Field(ge=0, description="Learning rate of the architecture.")] = 0.02
    temperature: Annotated[
        float, Field(gt=0, description="Of the softmax that paths are drawn from, at first.")
    ] = 1.0
    final_temperature: Annotated[float, Field(gt=0, description="The same in the end.")] = 1.0
    num_samples: Annotated[int, Field(ge=1, description="Networks a step of reinforce.")] = 4
    share_weights: Annotated[
        bool, Field(description="Candidates of a block share weights; as published they do not.")
    ] = True

    @property
    def weight(self) -> float:
        """Of the losses ``sum`` and ``product``."""
        return LATENCY_WEIGHT if self.latency_weight is None else self.latency_weight

    @model_validator(mode="after")
    def _needs_a_weight(self) -> Self:
        if self.latency_weight is not None and self.latency_loss == "adaptive":
            raise ValueError(
                "latency_weight goes with latency_loss sum or product, the adaptive one finds its "
                "own"
            )
        return self


class Proxyless(Gradient):
    """ProxylessNAS (Cai, Zhu and Han 2019)."""

    name = "proxyless"
    help = "ProxylessNAS: weights and probabilities of candidate operations together."
    options = ProxylessOptions
    home = "proxyless-small"

    def misfit(self, space: SearchSpace) -> str | None:
        """It searches candidate operations at one resolution."""
        if space.has_candidates and len(space.resolutions) == 1:
            return None
        return "which searches candidate operations at one resolution"

    def recipe(self, options: ProxylessOptions, seed: int) -> ProxylessRecipe:
        """Ten passes."""
        from deploynas.search.proxyless import ProxylessRecipe

        return ProxylessRecipe(seed=seed, architecture=options)

    def learner(self, space: SearchSpace, recipe: ProxylessRecipe) -> PathsLearner:
        """Paths of a mixed network."""
        from deploynas.search.proxyless import PathsLearner

        return PathsLearner(space, recipe)

    def step_cost(self, space: SearchSpace) -> float:
        """A weight step, and two paths and their gates for the architecture."""
        return 3.0


STRATEGY = Proxyless()
