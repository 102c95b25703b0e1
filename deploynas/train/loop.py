"""The one training loop: schedule, order of the images, checkpoints, progress.

What a step does (a supernet's sandwich, one static network) is the caller's; everything that a
step needs follows from the recipe and the step's number, so that a killed training goes on as if
nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from deploynas.artifacts import Record
from deploynas.data import ImageDataset
from deploynas.errors import DeploynasError, InvalidInputError
from deploynas.spaces import ResolutionLike
from deploynas.train.augment import STRONGEST, Augmentation, Augmented
from deploynas.train.batches import Batches, on_device
from deploynas.train.checkpoint import State, Together, load_checkpoint, save_checkpoint
from deploynas.train.distributed import (
    average_gradients,
    is_first,
    mean_over_processes,
    place,
    wait,
)

CHECKPOINT_SECONDS = 30.0
MIN_STEPS, MAX_EPOCHS = 600, 40.0  # of a training whose length nobody chose
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
LOOK_EVERY = 16  # steps of a GPU, which a look at the loss waits for


class Recipe(Record):
    """How to train.

    Attributes:
        epochs: Passes over the train split; a fraction is allowed.
        learning_rate: Peak, reached after ``warmup`` of the steps, then a cosine to zero.
        optimizer: Nesterov's SGD, or AdamW (Loshchilov and Hutter 2019), which wants learning
            rates of a hundredth and weight decays of a thousand times as much.
        momentum: Of SGD.
        weight_decay: Of convolutions and linear layers; off for norms and biases.
        layer_decay: Learning rate of a layer over that of the next, the last having the whole
            (Bao et al. 2022, "BEiT", appendix): below 1 what was learned first stays.
        clip: Largest norm of all gradients; 0 for any.
        ema: Share of themselves that a running mean of the weights keeps at a step, after the
            first few hundred; that mean is what a training leaves (Polyak and Juditsky 1992).
            0 for none.
        augment_from: Trainings of at least so many epochs shift the images; shorter ones do not
            overfit, and shifts slow them down.
        flip: Mirror half of the images as well.
        operations, erased, mixup, cutmix: See :class:`Augmentation`.
        amp: What a GPU computes convolutions and linear layers in (Micikevicius et al. 2018);
            weights, batch norms' statistics and losses stay float32. ``off`` is float32
            throughout, which a CPU always is; ``fp16`` scales losses, leaves out steps that
            overflow, and waits for the device at every step. What is narrower pays for large
            batches: docs/scaling.md.
    """

    epochs: Positive
    batch_size: Count = 128
    learning_rate: Positive = 0.2
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 3e-5
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    clip: Annotated[float, Field(ge=0)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup: Share = 0.05
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    augment_from: float = 8.0
    flip: bool = True
    operations: Annotated[float, Field(ge=0, le=STRONGEST)] = 0.0
    erased: Share = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    amp: Literal["off", "bf16", "fp16"] = "off"
    seed: int = 0

    def lengthened(self, num_images: int) -> Self:
        """More epochs where a train split is so small that they would be few steps."""
        return self._with_steps(MIN_STEPS, num_images, MAX_EPOCHS)

    def _with_steps(self, num_steps: int, num_images: float, most: float) -> Self:
        needed = num_steps * self.batch_size / num_images
        return self.model_copy(update={"epochs": round(max(self.epochs, min(needed, most)), 1)})

    @property
    def augmentation(self) -> Augmentation:
        """What is done to images."""
        return Augmentation(
            self.epochs >= self.augment_from, self.flip, self.operations, self.erased,
            self.mixup, self.cutmix,
        )  # fmt: skip

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """What a forward pass and its loss on a device run under."""
        is_on = device.type == "cuda" and self.amp != "off"
        narrow = torch.float16 if self.amp == "fp16" else torch.bfloat16
        return torch.autocast(device.type, narrow, enabled=is_on)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """What scales losses on a device; does nothing where nothing can overflow."""
        is_on = device.type == "cuda" and self.amp == "fp16"
        return torch.amp.GradScaler(device.type, enabled=is_on)


@dataclass(frozen=True)
class TrainingProgress:
    """State of a running training.

    Attributes:
        accuracies: What was last measured on the validation split: name -> fraction.
        fresh: The same where it was measured after this very step, else nothing.
        scalars: What else is logged: name -> value.
        detail: What else a person should read.
    """

    step: int
    num_steps: int
    loss: float
    images_per_second: float
    accuracies: Mapping[str, float] = field(default_factory=dict)
    fresh: Mapping[str, float] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""


class DivergedError(DeploynasError):
    """The loss became NaN or infinite; the last checkpoint is kept."""

    kind = "diverged"


class StepImages:
    """The images of one step.

    Attributes:
        task: What they are for.
        labels: ``(n,)``; in a distributed training those of this process's part.
        rng: The step's own generator, equal in all processes.
        share: Share of the training that is done, 0 to 1.
        phase: Number of the part of the training that the step belongs to.
        rate: Learning rate of the step.
        scaled: The loss as its backward pass must see it.
    """

    def __init__(
        self, data: Batches, rows: np.ndarray, recipe: Recipe, step: int, share: float,
        phase: int, rate: float, scaled: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> None:  # fmt: skip
        first, count = place()
        own = slice(first, None, count)  # of the whole batch
        self._data, self._rows, self._smoothing = data, rows[own], recipe.label_smoothing
        self.task = data.task
        self.rng, self.share = _generator(recipe, step, 0), share
        self.phase, self.rate, self.scaled = phase, rate, scaled
        self.labels = data.labels[on_device(self._rows, data.labels.device)]
        self._augmented = Augmented(
            recipe.augmentation, partial(_generator, recipe, step), len(rows), own
        )

    def at(self, resolution: ResolutionLike) -> Tensor:
        """``(n, c, height, width)``, normalised and, where the recipe says, augmented."""
        x = self._data.images(self._rows, resolution, self._augmented.pixels)
        return self._augmented.inputs(x)

    def wanted(self, x: Tensor, num_outputs: int) -> Tensor:
        """What a network should answer to images of :meth:`at`."""
        targets = self.task.targets(self.labels, num_outputs, self._smoothing)
        return self._augmented.targets(targets, *x.shape[2:])


@dataclass(frozen=True)
class Trainee:
    """What is trained.

    Attributes:
        module: In training mode afterwards.
        identity: What a checkpoint must have been written for, beside data and recipe.
        weights: What the optimizer moves; all of the module's parameters where None.
        beside: Is kept in the checkpoint as well.
    """

    module: nn.Module
    identity: str
    weights: Sequence[nn.Parameter] | None = None
    beside: State | None = None


@dataclass(frozen=True)
class Parts:
    """Parts of a training, each with a warm-up, a cosine and a momentum of its own.

    Attributes:
        shares: Of the steps, and of the peak learning rate.
        on_part: Called with a part's number before its first step; may change the module.
    """

    shares: Sequence[tuple[float, float]] = ((1.0, 1.0),)
    on_part: Callable[[int], None] = lambda number: None


WHOLE = Parts()


def run_training(
    trainee: Trainee,
    dataset: ImageDataset,
    recipe: Recipe,
    accumulate: Callable[[StepImages], Tensor],
    *,
    checkpoint: Path | None,
    on_progress: Callable[[TrainingProgress], None],
    parts: Parts = WHOLE,
) -> None:
    """Train a module in place.

    Args:
        trainee: The module, and what moves.
        dataset: Its train split.
        recipe: How.
        accumulate: Adds one step's gradients and returns the loss that is reported, a scalar.
        checkpoint: Written every half minute and read back at the start where it exists; the
            caller removes it after success.
        on_progress: Called after every step, on a GPU with the loss of the last look.
        parts: One after another.

    Raises:
        DivergedError: The loss is not finite.
        InvalidInputError: The checkpoint belongs to another recipe, network or data set.
    """
    module = trainee.module
    module.to(memory_format=torch.channels_last).train()
    device = next(module.parameters()).device
    data = Batches(dataset, dataset.train, device)
    look_every = 1 if device.type == "cpu" else LOOK_EVERY
    steps_per_epoch = max(1, len(data) // recipe.batch_size)
    num_steps = max(1, round(recipe.epochs * steps_per_epoch))
    parameters = list(module.parameters())
    optimizer = optimizer_of(module, trainee.weights, recipe)
    scaler = recipe.scaler(device)
    mean = RunningMean(trainee.weights or parameters, recipe.ema)
    kept: dict[str, State] = {"scale": LossScale(scaler), "mean": mean}
    if trainee.beside is not None:
        kept["own"] = trainee.beside
    beside = Together(kept)
    loss = math.nan
    unseen: list[Tensor] = []
    batch_size = min(recipe.batch_size, len(data))
    if batch_size % place()[1]:
        raise InvalidInputError(
            f"a batch of {batch_size} images cannot be shared by {place()[1]} processes"
        )
    identity = f"{trainee.identity} {dataset.fingerprint} {recipe.model_dump_json()}"
    step = load_checkpoint(checkpoint, identity, module, optimizer, beside) if checkpoint else 0
    if step > num_steps:
        raise InvalidInputError(f"{checkpoint} is at step {step} of {num_steps}", "delete it")
    wait()
    started, first_step, saved = time.monotonic(), step, time.monotonic()
    ends = ends_of(parts.shares, num_steps)
    while step < num_steps:
        part = int(np.searchsorted(ends, step, side="right"))
        first, rate = int(ends[part - 1]) if part else 0, parts.shares[part][1]
        if step == first:
            parts.on_part(part)
            optimizer.state.clear()
            mean.begin()
        share = _schedule(step - first, int(ends[part]) - first, recipe.warmup)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate * share * group["share"]
        rows = rows_of(len(data), recipe, step, steps_per_epoch)
        for parameter in parameters:
            parameter.grad = None
        images = StepImages(
            data, rows, recipe, step, step / num_steps, part, recipe.learning_rate * rate * share,
            scaler.scale,
        )  # fmt: skip
        unseen.append(accumulate(images).detach())
        is_look = not (step + 1) % look_every or step in (first_step, num_steps - 1)
        if is_look:
            loss = last_seen(unseen)
            unseen.clear()
            if not math.isfinite(loss):
                raise DivergedError(
                    f"training diverged at step {step} of {num_steps}",
                    "try a lower learning rate" + ", or amp=bf16" * scaler.is_enabled(),
                )
        average_gradients(module)
        if recipe.clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
        scaler.step(optimizer)
        scaler.update()
        step += 1
        mean.follow(step)
        now = time.monotonic()
        speed = (step - first_step) * recipe.batch_size / (now - started)
        on_progress(TrainingProgress(step, num_steps, loss, speed))
        if checkpoint and is_first() and is_look and now - saved > CHECKPOINT_SECONDS:
            save_checkpoint(checkpoint, identity, step, module, optimizer, beside)
            saved = time.monotonic()
    mean.settle()


class LossScale:
    """A loss scale as a :class:`State`."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self._scaler = scaler

    def state(self) -> dict[str, Tensor]:
        """See :class:`State`."""
        return {k: torch.tensor(v) for k, v in self._scaler.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """See :class:`State`."""
        self._scaler.load_state_dict({k: v.item() for k, v in state.items()})


class RunningMean:
    """A running mean of weights; nothing where it keeps none of itself."""

    def __init__(self, weights: Sequence[nn.Parameter], share: float) -> None:
        self._weights, self._share = weights, share
        self._means = [w.detach().clone() for w in weights] if share else []

    @torch.no_grad()
    def begin(self) -> None:
        """Anew, from the weights as they are: channels may have been sorted."""
        if self._means:
            torch._foreach_copy_(self._means, list(self._weights))

    def follow(self, step: int) -> None:
        """After a step; the first count for more, so that the mean does not begin at random."""
        if self._means:
            kept = min(self._share, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._means, [w.detach() for w in self._weights], 1 - kept)

    @torch.no_grad()
    def settle(self) -> None:
        """Make it the weights."""
        if self._means:
            torch._foreach_copy_(list(self._weights), self._means)

    def state(self) -> dict[str, Tensor]:
        """See :class:`State`."""
        return {str(i): mean for i, mean in enumerate(self._means)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """See :class:`State`."""
        for i, mean in enumerate(self._means):
            mean.copy_(state[str(i)])


def last_seen(losses: Sequence[Tensor]) -> float:
    """The last loss, a mean over the processes; NaN where any is not finite."""
    total, last = torch.stack([torch.stack(list(losses)).sum(), losses[-1]]).tolist()
    return mean_over_processes(last if math.isfinite(total) else math.nan)


def ends_of(parts: Sequence[tuple[float, float]], num_steps: int) -> np.ndarray:
    """``(num_parts,)`` the step after each part's last; a part may have none."""
    shares = np.cumsum([share for share, _ in parts])
    ends: np.ndarray = np.rint(shares / shares[-1] * num_steps).astype(int)
    return ends


def _generator(recipe: Recipe, step: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([recipe.seed, step, stream])


def optimizer_of(
    module: nn.Module, weights: Sequence[nn.Parameter] | None, recipe: Recipe
) -> torch.optim.Optimizer:
    """Of some of a module's weights; a group's ``share`` is of the learning rate."""
    moved = None if weights is None else {id(p) for p in weights}
    named = {n: p for n, p in module.named_parameters() if moved is None or id(p) in moved}
    layers = list(dict.fromkeys(_layer_of(name) for name in named))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        share = recipe.layer_decay ** (len(layers) - 1 - layers.index(_layer_of(name)))
        decay = recipe.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((share, decay), []).append(parameter)
    split = [{"params": p, "weight_decay": d, "share": s} for (s, d), p in groups.items()]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(split, lr=recipe.learning_rate)
    return torch.optim.SGD(
        split, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0
    )


def _layer_of(name: str) -> str:
    """``layers.3.depthwise.conv.weight`` -> ``layers.3``."""
    return ".".join(name.split(".")[:2])


def _schedule(step: int, num_steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine."""
    rise = max(1.0, warmup * num_steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, num_steps - rise)))


def rows_of(n: int, recipe: Recipe, step: int, steps_per_epoch: int) -> np.ndarray:
    """The step's images: every epoch is a new seeded permutation."""
    epoch, place = divmod(step, steps_per_epoch)
    order = _order(n, recipe.seed, epoch)
    return order[place * recipe.batch_size : (place + 1) * recipe.batch_size]


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 1]).permutation(n)


def pick_device() -> torch.device:
    """CUDA where present (this process's own), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
