"""Weights that a supernet shares: every network inherits them, the best few may be retrained."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploynas.artifacts import exists, sha256
from deploynas.costs import Floats
from deploynas.data import ImageDataset
from deploynas.errors import InvalidInputError
from deploynas.nn import StaticNetwork
from deploynas.search import Plan, Problem
from deploynas.spaces import Archs, ResolutionLike, SearchSpace, resolutions_of
from deploynas.train import SupernetEvaluator, SupernetRecipe
from deploynas.train.evaluate import CALIBRATION_IMAGES, QUICK_CALIBRATION, QUICK_IMAGES
from deploynas.workflows.candidates import TrainedCandidates
from deploynas.workflows.chosen import space_of
from deploynas.workflows.executor import ALONE, Executor, Workers
from deploynas.workflows.search import Opened
from deploynas.workflows.supernets import (
    SUPERNET,
    SupernetRecord,
    data_record,
    open_supernet,
    train,
)
from deploynas.workflows.target import Tell
from deploynas.workflows.trainings import images_per_second, threads_of

NUM_EVALUATIONS = 96


class Inherited:
    """A supernet's weights.

    Args:
        space: Searched; the supernet's own where that is there already.
        dataset: Images.
        folder: Of the supernet: opened where it is there, else trained into it.
        recipe: Of its training; where it was trained otherwise, that is an error. None: it must be
            there, however it was trained.
        retrained: Trains the best few from scratch, before one is chosen: as many as the strategy
            says.
        workers: How many networks are evaluated at a time, and where.

    Attributes:
        more_seconds: Of the processor, of the retrainings, beyond what they took by the clock.

    Raises:
        MissingFileError, InvalidInputError: It is not there, damaged, of other data, or trained
            by another recipe.
    """

    num_evaluations, beside, in_processes = NUM_EVALUATIONS, True, False

    def __init__(
        self,
        space: SearchSpace,
        dataset: ImageDataset,
        folder: Path,
        recipe: SupernetRecipe | None,
        *,
        retrained: TrainedCandidates | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self._dataset, self._folder, self._recipe = dataset, folder, recipe
        self._retrained, self._workers = retrained, workers
        self.at_once = workers.num
        self.more_seconds = 0.0
        self.space: SearchSpace = space
        if recipe is not None and exists(SupernetRecord.file_in(folder)):
            require_space(folder, space)
        if recipe is None or exists(SupernetRecord.file_in(folder)):
            record = SupernetRecord.read(SupernetRecord.file_in(folder))
            if recipe is not None and recipe != record.settings:
                raise InvalidInputError(
                    f"{folder} holds a supernet that was trained otherwise "
                    f"({_differences(recipe, record.settings)})",
                    "leave the recipe's options out to search it, or pass another --output to "
                    "train one",
                )
            own = space_of(record.space)
            held = [one for one in space.resolutions if one in own.resolutions]
            self.space = own.with_resolutions(held) if space.key == own.key and held else own

    @property
    def data(self) -> str:
        """Fingerprint of the images."""
        return self._dataset.fingerprint

    @property
    def identity(self) -> str:
        """The recipe, or the weights' hash where another training made them."""
        longer = "" if self._retrained is None else f" {self._retrained.identity_of_trainings}"
        if self._recipe is not None:
            return f"inherited {self._recipe.model_dump_json()}{longer}"
        return f"inherited {sha256(self._folder / SUPERNET)}{longer}"

    def forecast(self, space: SearchSpace, plan: Plan) -> float:
        """Of the evaluations alone."""
        speed = images_per_second(space, 64)
        evaluated = min(QUICK_IMAGES, len(self._dataset.val)) + QUICK_CALIBRATION
        return plan.effort.num_evaluations * evaluated / (3 * speed)

    def open(self, problem: Problem, plan: Plan, run: Path, tell: Tell) -> Opened:
        """Train the supernet where it is not there."""
        file = SupernetRecord.file_in(self._folder)
        if exists(file):
            before = SupernetRecord.read(file).settings
            tell.note(
                f"supernet {self._folder}, trained before: {before.epochs:g} epochs, seed "
                f"{before.seed}"
            )
            supernet = open_supernet(self._folder, self._dataset)
        else:
            assert self._recipe is not None
            supernet = train(self.space, self._dataset, self._folder, self._recipe, tell.progress)
        retrained = self._retrained
        evaluator = SupernetEvaluator(supernet.network, self._dataset, problem.space)

        def extract(arch: Archs) -> StaticNetwork:
            if retrained is not None and retrained.is_trained(arch):
                return retrained.extract(arch)
            return evaluator.extract(arch)

        close, judge = ExitStack(), evaluator
        if self._workers.num > 1:
            opener = partial(
                _evaluator, self._folder, self._dataset, problem.space.spec,
                threads_of(self._workers),
            )  # fmt: skip
            judge = InWorkers(evaluator, close.enter_context(self._workers.open(opener)))
        opened = Opened(
            judge, extract, data_record(self._dataset), "shared", self._folder,
            inputs=[file, self._folder / SUPERNET], is_kept=True, close=close,
        )  # fmt: skip
        if retrained is not None:
            opened.settle = (plan.strategy.num_retrained, self._judge)
            opened.weights, opened.is_kept = "trained", False
            opened.num_images = min(CALIBRATION_IMAGES, len(self._dataset.train))
            opened.close.callback(retrained.close)
        return opened

    def _judge(self, archs: Archs) -> Floats:
        assert self._retrained is not None
        started, before = time.monotonic(), self._retrained.seconds
        found: Floats = np.asarray(self._retrained.final(archs))
        # their own seconds count, whoever trained them, however many at a time
        self.more_seconds += self._retrained.seconds - before - (time.monotonic() - started)
        return found


class InWorkers(SupernetEvaluator):
    """An evaluator whose inner loop runs in workers, each with the supernet and the images.

    Args:
        own: Does everything else.
        executor: Of such evaluators.
    """

    def __init__(self, own: SupernetEvaluator, executor: Executor[SupernetEvaluator]) -> None:
        vars(self).update(vars(own))
        self._executor = executor

    def quick(self, archs: Archs) -> Iterator[float]:
        """Accuracies on the first images of the validation split, as they come."""
        futures = [self._executor.submit(_quick, arch[None]) for arch in archs]
        for future in futures:
            yield future.result()


def _quick(evaluator: SupernetEvaluator, arch: Archs) -> float:
    (found,) = evaluator.quick(arch)
    return found


def _evaluator(
    folder: Path, dataset: ImageDataset, spec: dict[str, Any], num_threads: int
) -> SupernetEvaluator:
    """What a worker opens once."""
    torch.set_num_threads(num_threads)
    return SupernetEvaluator(open_supernet(folder, dataset).network, dataset, space_of(spec))


def require_space(folder: Path, named: SearchSpace) -> None:
    """Check that a supernet is of a space, at whatever resolutions and for whatever classes.

    Raises:
        MissingFileError, InvalidInputError: It is not there, or of another space.
    """
    record = SupernetRecord.read(SupernetRecord.file_in(folder))
    own = space_of(record.space)
    if own.key != named.key:
        raise InvalidInputError(
            f"{folder} is a supernet of {own.name}, not of {named.name} as it is now",
            "leave out --space, or train another",
        )


def trained_at(folder: Path, asked: Sequence[ResolutionLike] = ()) -> list[str]:
    """The resolutions that a supernet was trained at, of those that are asked for.

    Raises:
        MissingFileError, InvalidInputError: It is not there, or was trained at others.
    """
    record = SupernetRecord.read(SupernetRecord.file_in(folder))
    own = space_of(record.space).resolutions
    for one in resolutions_of(asked):
        if one not in own:
            held = ", ".join(map(str, own))
            raise InvalidInputError(f"{folder} was trained at {held} px, not at {one}")
    return [str(one) for one in resolutions_of(asked) or own]


def space_trained(folder: Path) -> str:
    """What names the space of a supernet on the command line.

    Raises:
        MissingFileError, InvalidInputError: It is not there.
    """
    return space_of(SupernetRecord.read(SupernetRecord.file_in(folder)).space).argument


def _differences(wanted: SupernetRecipe, before: SupernetRecipe) -> str:
    """For people."""
    other = before.model_dump()
    return ", ".join(
        f"{name} {other[name]}, not {value}"
        for name, value in wanted.model_dump().items()
        if other[name] != value
    )
