"""What searches by gradients share: weights and architecture in turn, on images of their own.

A weight step sees the train split, an architecture step images that the weights never see; both go
through one training loop, and one checkpoint holds all of it.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from deploynas.artifacts import Record
from deploynas.costs import COSTS
from deploynas.data import ImageDataset, Source
from deploynas.data.splits import stratified_mask
from deploynas.errors import InvalidInputError
from deploynas.search.budget import own_name
from deploynas.search.discretise import Decision
from deploynas.search.problem import Problem
from deploynas.spaces import Archs, Resolution, SearchSpace
from deploynas.train import Batches, Recipe, TrainingProgress
from deploynas.train.distributed import is_first, place
from deploynas.train.loop import (
    MIN_STEPS,
    Count,
    Positive,
    Share,
    StepImages,
    Trainee,
    run_training,
)

Part = Annotated[float, Field(gt=0, lt=1)]
NUM_POINTS = 60  # of the history
MAX_EPOCHS = 200.0  # of a search whose length nobody chose


class GradientRecipe(Recipe):
    """How weights and architecture take turns.

    Attributes:
        epochs: Passes of the weights over their part of the train split.
        weights_only: Share of the steps before the first architecture step.
        held_out: Share of the train split that only the architecture sees.
        architecture_every: Weight steps to an architecture step.
    """

    epochs: Positive = 10.0
    batch_size: Count = 64
    learning_rate: Positive = 0.1
    weights_only: Share = 0.5
    held_out: Part = 0.2
    architecture_every: Count = 1

    def lengthened(self, num_images: int) -> Self:
        """Four times as many steps as other trainings, of the weights' images."""
        return self._with_steps(4 * MIN_STEPS, (1 - self.held_out) * num_images, MAX_EPOCHS)


@dataclass(frozen=True)
class WeightStep:
    """The weight step to come, for an architecture step that looks beyond it.

    Attributes:
        x: ``(n, c, r, r)``.
        loss: Of logits ``(n, num_classes)``, a scalar.
        rate: Its learning rate.
    """

    x: Tensor
    loss: Callable[[Tensor], Tensor]
    rate: float


class Architecture(Protocol):
    """What moves a network's architecture parameters.

    Attributes:
        num_steps, multiplier, temperature: As in the history.
    """

    num_steps: int
    multiplier: float
    temperature: float

    def step(
        self,
        x: Tensor,
        labels: Tensor,
        rng: np.random.Generator,
        share: float,
        weight_step: WeightStep | None = None,
    ) -> float:
        """One step on a held-out batch; its loss. ``weight_step``: the one to come."""
        ...

    def probabilities(self) -> list[np.ndarray]:
        """A vector a block or edge."""
        ...

    def expected(self) -> dict[str, float]:
        """E[cost] of every limited cost, in the budget's units."""
        ...

    def entropy(self) -> float:
        """Mean entropy as a share of its maximum."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that resuming needs beside the network's own state."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what :meth:`state` gave."""
        ...


class HistoryPoint(Record):
    """Where a search stood.

    Attributes:
        step: Weight steps done.
        probabilities: A list a mixed layer.
        expected: E[cost] of every limited cost.
        entropy: Mean over the blocks, as a share of its maximum.
        loss: Of the last held-out batch; None before the first.
    """

    step: int
    probabilities: tuple[tuple[float, ...], ...]
    expected: dict[str, float]
    entropy: float
    multiplier: float
    temperature: float
    loss: float | None


@dataclass(frozen=True)
class Learned:
    """What a gradient search learned.

    Attributes:
        decision: The likeliest network within budget.
        probabilities: ``(num_candidates,)`` a mixed layer.
        history: From first to last.
    """

    decision: Decision
    probabilities: list[np.ndarray]
    history: tuple[HistoryPoint, ...]


def split_for_architecture(
    dataset: ImageDataset, share: float, seed: int
) -> tuple[ImageDataset, Source]:
    """The data set without ``share`` of its train images, and those, each class by its share.

    Raises:
        InvalidInputError: See :func:`require_splittable`.
    """
    require_splittable(dataset)
    labels = dataset.train.labels
    held = stratified_mask(labels, round(share * len(labels)), np.random.default_rng([seed, 9]))
    own = replace(dataset, train=dataset.train.take(np.flatnonzero(~held)))
    return own, dataset.train.take(np.flatnonzero(held))


def require_splittable(dataset: ImageDataset) -> None:
    """Check that images can be held out of the train split.

    Raises:
        InvalidInputError: A class has a single train image.
    """
    if np.bincount(dataset.train.labels, minlength=dataset.num_classes).min() < 2:
        raise InvalidInputError(
            f"{dataset.source} is too small to hold out images for the architecture: a class has "
            "fewer than two to train on",
            "add images, or search with --strategy ofa, which needs no such split",
        )


class Learner(abc.ABC):
    """A network whose weights and architecture are learned together.

    Attributes:
        space: Searched.
        recipe: How weights and architecture take turns, and the strategy's own options.
        network: Weights and architecture parameters; ``extract(arch)`` is a static network.
    """

    space: SearchSpace
    recipe: GradientRecipe
    network: nn.Module

    @property
    @abc.abstractmethod
    def weights(self) -> Sequence[nn.Parameter]:
        """What a weight step moves."""

    @property
    @abc.abstractmethod
    def blocks(self) -> list[tuple[str, tuple[str, ...]]]:
        """Name and candidates of every choice, in the order of the probabilities."""

    @abc.abstractmethod
    def architecture(self, problem: Problem) -> Architecture:
        """What moves the architecture parameters, steered by the limits that are sums."""

    @abc.abstractmethod
    def logits(self, x: Tensor, images: StepImages, architecture: Architecture) -> Tensor:
        """``(n, num_classes)`` that a weight step's loss is of; ``x`` is ``(n, c, r, r)``."""

    @abc.abstractmethod
    def decide(
        self, probabilities: Sequence[np.ndarray], problem: Problem, num_evaluations: int = 20_000
    ) -> Decision:
        """The network at some probabilities that keeps every limit.

        Raises:
            InfeasibleBudgetError: None was found.
        """

    @abc.abstractmethod
    def short(self, found: Decision) -> str:
        """A network for the progress line."""

    def identity(self, problem: Problem) -> str:
        """What a checkpoint must have been written for, beside data and recipe."""
        sums = {name: one.values.tolist() for name, one in problem.layer_sums().items()}
        return f"{self.space.spec} {problem.budget.model_dump_json()} {sums}"

    def notes(self, best: Archs) -> list[str]:
        """What a user should know of a network that was decided on."""
        return []

    def learn(
        self,
        dataset: ImageDataset,
        problem: Problem,
        *,
        checkpoint: Path | None = None,
        on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
    ) -> Learned:
        """Train the network in place and decide.

        Args:
            dataset: Its train split is divided between weights and architecture.
            problem: Steered to where a limit binds, and kept by the decision.
            checkpoint: As in :func:`run_training`.
            on_progress: Called after every step.

        Raises:
            DivergedError: A loss is not finite; the last checkpoint is kept.
            InvalidInputError: The data is too small to split, or the checkpoint is another's.
            InfeasibleBudgetError: No network keeps the limits.
        """
        recipe, resolution = self.recipe, self.space.resolutions[0]
        optimizer = self.architecture(problem)
        own, held = split_for_architecture(dataset, recipe.held_out, recipe.seed)
        device = next(self.network.parameters()).device
        search = _Search(optimizer, Batches(dataset, held, device), recipe, resolution)
        if search.smallest_batch < place()[1]:
            raise InvalidInputError(
                f"{len(held)} images for the architecture cannot be shared by {place()[1]} "
                "processes"
            )

        def accumulate(images: StepImages) -> Tensor:
            x = images.at(resolution)

            def loss_of(out: Tensor) -> Tensor:
                return images.task.loss(out, images.wanted(x, out.shape[1]))

            search.architecture_step(images.share, WeightStep(x, loss_of, images.rate))
            with recipe.autocast(device):
                loss = loss_of(self.logits(x, images, optimizer))
            images.scaled(loss).backward()
            return loss

        def watch(state: TrainingProgress) -> None:
            search.weight_steps = state.step
            is_due = state.step % max(1, state.num_steps // NUM_POINTS) == 0
            scalars: dict[str, float] = {}
            if is_due or state.step == state.num_steps:
                search.history.append(search.point(state.step))
                if optimizer.num_steps and is_first():
                    search.best = self.short(
                        self.decide(optimizer.probabilities(), problem, num_evaluations=400)
                    )
                scalars = _scalars(search.history[-1])
            on_progress(replace(state, scalars=scalars, detail=search.detail(problem)))

        run_training(
            Trainee(self.network, self.identity(problem), self.weights, search), own, recipe,
            accumulate, checkpoint=checkpoint, on_progress=watch,
        )  # fmt: skip
        found = optimizer.probabilities()
        return Learned(self.decide(found, problem), found, tuple(search.history))


def walk(num_images: int, batch_size: int, seed: int, number: int) -> np.ndarray:
    """Rows of batch ``number`` of a walk through all images, in a new order every time.

    The batches of a walk are of equal size, or one image apart.
    """
    num_batches = _num_batches(num_images, batch_size)
    passes, place_in_pass = divmod(number, num_batches)
    order = np.random.default_rng([seed, passes, 12]).permutation(num_images)
    return np.array_split(order, num_batches)[place_in_pass]


def _num_batches(num_images: int, batch_size: int) -> int:
    return -(-num_images // batch_size)


class _Search:
    """The architecture's side of a search: its batches, its history, its state."""

    def __init__(
        self,
        optimizer: Architecture,
        data: Batches,
        recipe: GradientRecipe,
        resolution: Resolution,
    ) -> None:
        self.optimizer, self.data, self.recipe = optimizer, data, recipe
        self.resolution = resolution
        self.history: list[HistoryPoint] = []
        self.best = ""
        self._loss: float | None = None
        self.weight_steps = 0

    def architecture_step(self, share: float, weight_step: WeightStep) -> None:
        """Before a weight step: an architecture step where one is due."""
        recipe = self.recipe
        if share < recipe.weights_only or self.weight_steps % recipe.architecture_every:
            return
        number = self.optimizer.num_steps
        rows = walk(len(self.data), recipe.batch_size, recipe.seed, number)
        first, count = place()
        own = rows[first::count]
        labels = self.data.labels[torch.from_numpy(own).to(self.data.labels.device)]
        done = (share - recipe.weights_only) / max(1e-9, 1 - recipe.weights_only)
        self._loss = self.optimizer.step(
            self.data.images(own, self.resolution), labels,
            np.random.default_rng([recipe.seed, number, 11]), done, weight_step,
        )  # fmt: skip

    @property
    def smallest_batch(self) -> int:
        """Images of the smallest batch of a walk."""
        return len(self.data) // _num_batches(len(self.data), self.recipe.batch_size)

    def point(self, step: int) -> HistoryPoint:
        """Where the search stands."""
        optimizer = self.optimizer
        return HistoryPoint(
            step=step,
            probabilities=tuple(
                tuple(round(float(v), 5) for v in p) for p in optimizer.probabilities()
            ),
            expected=optimizer.expected(),
            entropy=optimizer.entropy(),
            multiplier=optimizer.multiplier,
            temperature=optimizer.temperature,
            loss=self._loss,
        )

    def detail(self, problem: Problem) -> str:
        """Expected costs beside their limits, entropy, and the best network so far."""
        if not self.history:
            return ""
        point = self.history[-1]
        text = ""
        for name, expected in point.expected.items():
            shown = COSTS.load(own_name(name)).format
            text += f", expected {shown(expected)} of {shown(problem.limits[name])}"
        best = f", best {self.best}" if self.best else ""
        return f"{text}, entropy {point.entropy:.2f}{best}"

    def state(self) -> dict[str, Tensor]:
        """See :class:`State`."""
        points = [point.model_dump(mode="json") for point in self.history]
        kept = {
            "history": points, "best": self.best, "loss": self._loss, "steps": self.weight_steps,
        }  # fmt: skip
        text = json.dumps(kept).encode()
        return {
            "search": torch.frombuffer(bytearray(text), dtype=torch.uint8),
            **{f"optimizer.{k}": v for k, v in self.optimizer.state().items()},
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """See :class:`State`."""
        kept = json.loads(bytes(state["search"].tolist()))
        self.history = [HistoryPoint.model_validate(point) for point in kept["history"]]
        self.best, self._loss, self.weight_steps = kept["best"], kept["loss"], kept["steps"]
        self.optimizer.restore(
            {
                k.removeprefix("optimizer."): v
                for k, v in state.items()
                if k.startswith("optimizer.")
            }
        )


def _scalars(point: HistoryPoint) -> dict[str, float]:
    found = {f"expected/{name}": value for name, value in point.expected.items()}
    found |= {name: getattr(point, name) for name in ("entropy", "multiplier", "temperature")}
    return found if point.loss is None else found | {"held-out loss": point.loss}
