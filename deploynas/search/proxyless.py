"""ProxylessNAS: weights and architecture learned together on the task and the device.

Cai, Zhu and Han 2019, "ProxylessNAS: direct neural architecture search on target task and
hardware". A weight step trains one sampled path on the train split; an architecture step moves
the probabilities on images that the weights never see.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from deploynas.nn.candidates import MixedNetwork
from deploynas.search.discretise import Decision, discretise
from deploynas.search.gates import ArchitectureOptimizer, additive_costs
from deploynas.search.gradient import Architecture, GradientRecipe, Learner
from deploynas.search.problem import Problem
from deploynas.search.strategies.proxyless import ProxylessOptions
from deploynas.spaces import SearchSpace
from deploynas.train.loop import StepImages


class ProxylessRecipe(GradientRecipe):
    """How to search by gradients.

    Attributes:
        architecture: How its parameters move.
    """

    architecture: ProxylessOptions = ProxylessOptions()


class PathsLearner(Learner):
    """One path at a time.

    Args:
        space: Of candidate operations, at one resolution.
        recipe: How.
    """

    recipe: ProxylessRecipe
    network: MixedNetwork

    def __init__(self, space: SearchSpace, recipe: ProxylessRecipe) -> None:
        self.space, self.recipe = space, recipe
        self.network = MixedNetwork(space, shared=recipe.architecture.share_weights)

    @property
    def weights(self) -> Sequence[nn.Parameter]:
        """All but the architecture parameters."""
        return self.network.weights

    @property
    def blocks(self) -> list[tuple[str, tuple[str, ...]]]:
        """Those that have a choice."""
        return blocks_of(self.network)

    def architecture(self, problem: Problem) -> ArchitectureOptimizer:
        """Of two paths, or of rewards."""
        costs = additive_costs(self.network, problem)
        return ArchitectureOptimizer(self.network, costs, self.recipe.architecture)

    def logits(self, x: Tensor, images: StepImages, architecture: Architecture) -> Tensor:
        """Of a path that is drawn."""
        assert isinstance(architecture, ArchitectureOptimizer)
        out: Tensor = self.network(x, self.network.row(architecture.sample(images.rng)))
        return out

    def decide(
        self, probabilities: Sequence[np.ndarray], problem: Problem, num_evaluations: int = 20_000
    ) -> Decision:
        """See :func:`discretise`."""
        rng = np.random.default_rng([self.recipe.seed, 10])
        return discretise(self.network, probabilities, problem, rng, num_evaluations)

    def short(self, found: Decision) -> str:
        """Digits of the blocks' operations."""
        return self.network.digits(found.arch)


def blocks_of(network: MixedNetwork) -> list[tuple[str, tuple[str, ...]]]:
    """Name and candidates of every mixed layer."""
    choices = [network.space.choices[layer.column] for layer in network.mixed]
    return [(choice.name, tuple(map(str, choice.options))) for choice in choices]
