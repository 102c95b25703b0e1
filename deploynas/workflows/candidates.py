"""Candidates that are trained: in full, or by successive halving.

No weights are shared: what a strategy asks for is trained from scratch, each network by each
recipe once, and kept in the run's folder, so that a search that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from deploynas.costs import Floats
from deploynas.data import ImageDataset
from deploynas.nn import StaticNetwork
from deploynas.search import Plan, Problem, SearchResult
from deploynas.spaces import Archs, SearchSpace
from deploynas.train import Recipe, load_weights, pick_device
from deploynas.train.evaluate import CALIBRATION_IMAGES
from deploynas.workflows.executor import ALONE, Workers
from deploynas.workflows.search import Opened
from deploynas.workflows.supernets import data_record
from deploynas.workflows.target import OnProgress, Tell
from deploynas.workflows.trainings import (
    Spent,
    executor_for,
    images_per_second,
    key_of,
    train_all,
)

ETA, RUNGS = 3, 3  # one in so many goes on, so many times
LEAST_STEPS = 30  # of a rung
NUM_EVALUATIONS = 24


class TrainedCandidates:
    """Validation accuracy after training from scratch.

    With ``halving`` a candidate is first trained by a schedule of a ninth of the epochs; what is
    then among the best third of all that came so far is trained by one of a third, and of those
    the best third in full (successive halving, Jamieson and Talwalkar 2016, in the form that
    takes candidates as they come: Li et al. 2020, "A system for massively parallel hyperparameter
    tuning", section 3.2). Each rung is a whole schedule of its own, its rate annealed, so that
    its accuracies can be compared; that costs at most 1 + 1/3 + 1/9 of a full training.

    Args:
        space: Whose rows are judged.
        dataset: Images.
        recipe: Of a full training.
        folder: Keeps what was trained.
        halving: Whether to stop early what is behind.
        workers: How many trainings at a time, and where.
        on_progress: Called with what is going on and its share done.

    Attributes:
        rungs: Recipes, the full one last.
        seconds: Of the processor, of all trainings that were asked for, now or before.
    """

    identity = None  # every training is kept in a file of its own
    kind: Literal["measured"] = "measured"
    num_finalists = 3

    def __init__(
        self,
        space: SearchSpace,
        dataset: ImageDataset,
        recipe: Recipe,
        folder: Path,
        *,
        halving: bool = False,
        workers: Workers = ALONE,
        on_progress: OnProgress = lambda text, share: None,
    ) -> None:
        self.space, self._dataset, self._folder = space, dataset, folder
        self._workers, self._on_progress = workers, on_progress
        self.rungs = rungs_of(recipe, dataset, halving=halving)
        self._seen: list[dict[bytes, float]] = [{} for _ in self.rungs]
        self._seconds: dict[str, float] = {}
        self._num_asked = 0
        self._executor = executor_for(dataset, workers) if workers.num > 1 else None

    @property
    def identity_of_trainings(self) -> str:
        """How a network is trained."""
        how = "halving" if len(self.rungs) > 1 else "training"
        return f"{how} {self.rungs[-1].model_dump_json()}"

    def close(self) -> None:
        """End the workers."""
        if self._executor is not None:
            self._executor.__exit__()

    @property
    def seconds(self) -> float:
        """See the class."""
        return sum(self._seconds.values())

    def quick(self, archs: Archs) -> Floats:
        """``(n,)`` fractions after the first rung, which every candidate has.

        Those of later rungs are of other schedules, and do not compare with these:
        :meth:`promising` goes by them.
        """
        going = list(archs)
        self._num_asked += len(going)
        first: Floats | None = None
        for rung, seen in enumerate(self._seen):
            found = self._trained(going, rung)
            first = np.array(found) if first is None else first
            keys = [arch.tobytes() for arch in going]
            seen.update(zip(keys, found, strict=True))
            best = sorted(seen, key=lambda key: -seen[key])[: -(-len(seen) // ETA)]
            going = [arch for arch, key in zip(going, keys, strict=True) if key in set(best)]
            if not going:
                break
        assert first is not None
        return first

    def promising(self, archs: Archs, scores: Floats) -> list[int]:
        """Indices: who reached a later rung comes first, by its accuracy there."""
        standing = []
        for number, arch in enumerate(archs):
            key = arch.tobytes()
            rung = max((r for r, seen in enumerate(self._seen) if key in seen), default=-1)
            reached = self._seen[rung][key] if rung >= 0 else float(scores[number])
            standing.append((-rung, -reached, number))
        return [number for _, _, number in sorted(standing)]

    def final(self, archs: Archs) -> Floats:
        """``(n,)`` fractions after full training."""
        return np.array(self._trained(list(archs), len(self.rungs) - 1))

    def extract(self, arch: Archs) -> StaticNetwork:
        """The network with the weights of its full training; random ones where it has had none."""
        nodes = self.space.layers(arch)
        network = StaticNetwork(nodes)
        path = self._folder / f"{key_of(nodes, self._dataset, self.rungs[-1])}.safetensors"
        if path.exists():
            load_weights(path, network)
        return network.to(pick_device()).eval()

    def is_trained(self, arch: Archs) -> bool:
        """Whether it has had its full training."""
        key = key_of(self.space.layers(arch), self._dataset, self.rungs[-1])
        return (self._folder / f"{key}.safetensors").exists()

    def _told(self, text: str, share: float) -> None:
        so_far = f"{self._num_asked} candidates so far, " if self._num_asked else ""
        self._on_progress(f"{so_far}{text}", share)

    def _trained(self, archs: Sequence[Archs], rung: int) -> list[float]:
        jobs = [(self.space.layers(arch), self.rungs[rung]) for arch in archs]
        done = train_all(
            jobs, self._dataset, self._folder, self._workers, lambda: False, self._told,
            keep_weights=rung == len(self.rungs) - 1, executor=self._executor,
        )  # fmt: skip
        found = []
        for (nodes, recipe), one in zip(jobs, done, strict=True):
            assert one is not None  # time is never up
            self._seconds[key_of(nodes, self._dataset, recipe)] = one.seconds
            found.append(one.validation)
        return found


def rungs_of(recipe: Recipe, dataset: ImageDataset, *, halving: bool) -> list[Recipe]:
    """Recipes of the rungs, the full one last; those of too few steps are left out."""
    num_steps = recipe.epochs * len(dataset.train) / recipe.batch_size
    return [
        recipe.model_copy(update={"epochs": recipe.epochs / ETA**k})
        for k in reversed(range(RUNGS if halving else 1))
        if k == 0 or num_steps / ETA**k >= LEAST_STEPS
    ]


class Candidates:
    """Every network that is evaluated is trained.

    Args:
        space: Searched.
        dataset: Images.
        recipe: Of a full training.
        halving: Whether to stop early what is behind.
        workers: How many trainings at a time, and where; as many networks are asked for at a time.
        trained: Keeps every training, also those of other searches; in the run where None.
    """

    num_evaluations, beside, in_processes = NUM_EVALUATIONS, False, False
    more_seconds = 0.0

    def __init__(
        self,
        space: SearchSpace,
        dataset: ImageDataset,
        recipe: Recipe,
        *,
        halving: bool,
        workers: Workers = ALONE,
        trained: Path | None = None,
    ) -> None:
        self.space, self._dataset, self._recipe = space, dataset, recipe
        self._halving, self._workers, self._trained = halving, workers, trained
        self.at_once = workers.num

    @property
    def data(self) -> str:
        """Fingerprint of the images."""
        return self._dataset.fingerprint

    @property
    def identity(self) -> str:
        """How candidates are trained."""
        return f"{'halving' if self._halving else 'training'} {self._recipe.model_dump_json()}"

    @property
    def _rungs(self) -> list[Recipe]:
        return rungs_of(self._recipe, self._dataset, halving=self._halving)

    def forecast(self, space: SearchSpace, plan: Plan) -> float:
        """From a few training steps."""
        speed = images_per_second(space, self._recipe.batch_size)
        passes = sum(rung.epochs * (1 / ETA) ** n for n, rung in enumerate(self._rungs))
        seconds = plan.effort.num_evaluations * passes * len(self._dataset.train) / speed
        return seconds / at_once(self.at_once)

    def open(self, problem: Problem, plan: Plan, run: Path, tell: Tell) -> Opened:
        """Nothing is trained yet."""
        evaluator = TrainedCandidates(
            problem.space, self._dataset, self._recipe, self._trained or run / "trained",
            halving=self._halving, workers=self._workers, on_progress=tell.progress,
        )  # fmt: skip
        in_full = ", of which one in 9 in full" if len(evaluator.rungs) == RUNGS else ""
        tell.note(
            f"about {self.forecast(problem.space, plan) / 60:.0f} minutes where nothing was "
            f"trained before: {plan.effort.num_evaluations} candidates{in_full}, "
            f"{self._recipe.epochs:g} epochs"
        )

        def finish(result: SearchResult, arch: Archs) -> SearchResult:
            Spent(seconds=evaluator.seconds).write(run / "cost.json")
            return result

        opened = Opened(
            evaluator, evaluator.extract, data_record(self._dataset), "trained", run,
            num_images=min(CALIBRATION_IMAGES, len(self._dataset.train)), finish=finish,
        )  # fmt: skip
        opened.close.callback(evaluator.close)
        return opened


def at_once(num_workers: int) -> float:
    """What so many trainings at a time gain: two small networks do not fill two cores each."""
    return min(float(num_workers), 1.6) if torch.get_num_threads() > 1 else 1.0
