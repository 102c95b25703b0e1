"""ProxylessNAS: weights and architecture learned together on the task and the device.

Cai, Zhu and Han 2019, "ProxylessNAS: direct neural architecture search on target task and
hardware". A weight step trains one sampled path on the train split; an architecture step moves
the probabilities on images that the weights never see.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from deploynas.data import ImageDataset
from deploynas.nn.mixed import MixedNetwork
from deploynas.profile import LatencyModel
from deploynas.search.architecture import (
    ArchitectureOptimizer,
    ArchitectureRecipe,
    additive_costs,
)
from deploynas.search.budget import Budget
from deploynas.search.discretise import Decision, discretise
from deploynas.search.gradient import GradientRecipe, Learned, search_by_gradients
from deploynas.train import TrainingProgress
from deploynas.train.loop import StepImages


class ProxylessRecipe(GradientRecipe):
    """How to search by gradients.

    Attributes:
        share_weights: Whether the candidates of a block that differ in kernel size and width alone
            are parts of common weights, each of which learns at every step; as published each has
            its own, and learns when its path is drawn.
        architecture: How its parameters move.
    """

    share_weights: bool = True
    architecture: ArchitectureRecipe = ArchitectureRecipe()


def learn(
    network: MixedNetwork,
    dataset: ImageDataset,
    model: LatencyModel,
    budget: Budget,
    recipe: ProxylessRecipe,
    *,
    checkpoint: Path | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> Learned:
    """Train ``network`` in place and decide.

    Args:
        network: Of the model's space, at one resolution.
        dataset: Its train split is divided between weights and architecture.
        model: Latency of the candidates.
        budget: Steered to where a limit binds, and kept by the decision.
        recipe: How.
        checkpoint: As in :func:`run_training`.
        on_progress: Called after every step.

    Raises:
        DivergedError: A loss is not finite; the last checkpoint is kept.
        InvalidInputError: The data is too small to split, or the checkpoint is another's.
        InfeasibleBudgetError: No network keeps the budget.
    """
    optimizer = ArchitectureOptimizer(
        network, additive_costs(network, model, budget), recipe.architecture
    )

    def logits(x: Tensor, images: StepImages) -> Tensor:
        out: Tensor = network(x, network.row(optimizer.sample(images.rng)))
        return out

    def decide(**options: int) -> Decision:
        rng = np.random.default_rng([recipe.seed, 10])
        return discretise(network, optimizer.probabilities(), model, budget, rng, **options)

    return search_by_gradients(
        network, network.weights, network.space.resolutions[0], dataset, budget, recipe, optimizer,
        logits=logits, decide=decide, short=lambda decision: network.digits(decision.arch),
        identity=f"proxyless {network.space.spec} {budget.model_dump_json()} "
        f"{[c.tolist() for cost in optimizer.costs for c in cost.candidates]}",
        checkpoint=checkpoint, on_progress=on_progress,
    )  # fmt: skip
