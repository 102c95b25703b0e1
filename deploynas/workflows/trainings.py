"""Trainings from scratch, several at a time, each done once: kept by what was trained and how."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from deploynas.artifacts import Artifact, exists, unchanged, write_together
from deploynas.data import ImageDataset
from deploynas.nn import StaticNetwork
from deploynas.nn.static import initialise
from deploynas.spaces import SearchSpace
from deploynas.spaces.layers import Node
from deploynas.train import (
    Batches,
    Recipe,
    TrainingProgress,
    accuracy,
    pick_device,
    train_network,
    weights_of,
)
from deploynas.train.task import CLASSIFICATION
from deploynas.workflows.executor import Executor, Workers
from deploynas.workflows.supernets import told
from deploynas.workflows.target import OnProgress

CLOCK_SECONDS = 10.0


class Spent(Artifact):
    """``cost.json`` beside a search or a training: its seconds. Format 2 (0.1.0): a digest."""

    SCHEMA = "deploynas-cost"
    VERSION = 2
    ANEW = "delete it"
    MIGRATIONS = {1: unchanged}

    seconds: float


@contextmanager
def clocked(folder: Path, on_progress: OnProgress) -> Iterator[tuple[OnProgress, list[float]]]:
    """Counts the seconds of some work into ``folder/cost.json``, over all its processes.

    Yields:
        What to call on progress, so that a killed process loses :data:`CLOCK_SECONDS` of them at
        most; and a list: what is put into it is added.
    """
    file = folder / "cost.json"
    before = Spent.read(file).seconds if exists(file) else 0.0
    started = written = time.monotonic()
    more: list[float] = []

    def write() -> None:
        Spent(seconds=before + time.monotonic() - started + sum(more)).write(file)

    def told(text: str, share: float) -> None:
        nonlocal written
        if time.monotonic() - written > CLOCK_SECONDS:
            written = time.monotonic()
            write()
        on_progress(text, share)

    try:
        yield told, more
    finally:
        write()


class Trained(Artifact):
    """One training from scratch, kept by what was trained and how. Format 2 (0.1.0): a digest."""

    SCHEMA = "deploynas-trained"
    VERSION = 2
    ANEW = "delete it: it is trained again"
    MIGRATIONS = {1: unchanged}

    validation: float
    test: float
    seconds: float


def train_all(
    jobs: Sequence[tuple[list[Node], Recipe]],
    dataset: ImageDataset,
    folder: Path,
    workers: Workers,
    time_is_up: Callable[[], bool],
    on_progress: OnProgress,
    *,
    keep_weights: bool = False,
    executor: Executor[ImageDataset] | None = None,
) -> list[Trained | None]:
    """Train networks from scratch, several at a time, each of them once.

    Args:
        jobs: Networks and how each is trained.
        dataset: Images.
        folder: Keeps what was trained, and checkpoints of what was not to the end.
        workers: How many at a time, and where; the cores are shared among them.
        time_is_up: Asked before each training: after that none begins.
        on_progress: Called with what is going on and its share done.
        keep_weights: Beside the accuracies, as ``.safetensors``.
        executor: Of :func:`executor_for`, which lives on; one of this call alone where None.

    Returns:
        One a job; None where time was up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{key_of(nodes, dataset, recipe)}.json" for nodes, recipe in jobs]
    todo = {
        f: job
        for f, job in zip(files, jobs, strict=True)
        if not exists(f) or (keep_weights and not f.with_suffix(".safetensors").exists())
    }
    num = len(todo)
    if workers.num == 1:
        for done, (file, (nodes, recipe)) in enumerate(todo.items()):
            if time_is_up():
                break

            def each(text: str, share: float, before: int = done) -> None:
                on_progress(f"training: {before + 1} of {num}, {text}", (before + share) / num)

            train_alone(nodes, dataset, recipe, file, each, keep_weights=keep_weights)
    elif num:
        with ExitStack() as stack:
            if executor is None:
                workers = replace(workers, num=min(workers.num, num))
                executor = stack.enter_context(executor_for(dataset, workers))
            waiting, running = list(todo.items()), set[Future[None]]()
            while waiting or running:
                while waiting and len(running) < workers.num and not time_is_up():
                    file, (nodes, recipe) = waiting.pop(0)
                    running.add(executor.submit(_train, nodes, recipe, file, keep_weights))
                if not running:  # time is up
                    break
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for one in ended:
                    one.result()
                done = num - len(waiting) - len(running)
                on_progress(f"training: {done} of {num} networks", done / num)
    return [Trained.read(file) if file.exists() else None for file in files]


def executor_for(dataset: ImageDataset, workers: Workers) -> Executor[ImageDataset]:
    """Processes that train networks on a data set, among which the cores are shared."""
    return workers.open(partial(_in_worker, dataset, threads_of(workers)))


def threads_of(workers: Workers) -> int:
    """That each worker has of the cores."""
    return max(1, torch.get_num_threads() // workers.num)


def _in_worker(dataset: ImageDataset, num_threads: int) -> ImageDataset:
    """What a worker process opens once."""
    torch.set_num_threads(num_threads)
    return dataset


def _train(
    dataset: ImageDataset, nodes: list[Node], recipe: Recipe, file: Path, keep_weights: bool
) -> None:
    train_alone(nodes, dataset, recipe, file, keep_weights=keep_weights)


def train_alone(
    nodes: list[Node],
    dataset: ImageDataset,
    recipe: Recipe,
    file: Path,
    on_progress: OnProgress = lambda text, share: None,
    *,
    keep_weights: bool = False,
) -> None:
    """Train one network from scratch and write its accuracies; goes on from a checkpoint.

    Seconds are of the processor, what an interrupted training took before included.
    """
    torch.manual_seed(recipe.seed)
    network = StaticNetwork(nodes)
    initialise(network)
    network.to(pick_device())
    checkpoint, clock = file.with_suffix(".checkpoint"), file.with_suffix(".cost.json")
    before = Spent.read(clock).seconds if clock.exists() and checkpoint.exists() else 0.0
    started = written = time.process_time()
    tell = told("training", on_progress)

    def watch(state: TrainingProgress) -> None:
        nonlocal written
        if time.process_time() - written > CLOCK_SECONDS:
            written = time.process_time()
            Spent(seconds=before + written - started).write(clock)
        tell(state)

    train_network(network, dataset, recipe, checkpoint=checkpoint, on_progress=watch)
    validation, test = (
        accuracy(network, Batches(dataset, split, pick_device()), network.resolution)
        for split in (dataset.val, dataset.test)
    )
    seconds = before + time.process_time() - started
    done = Trained(validation=validation, test=test, seconds=seconds)
    weights = {file.with_suffix(".safetensors").name: weights_of(network)} if keep_weights else {}
    write_together(file.parent, {**weights, file.name: done.content}, file.name)
    for path in (checkpoint, clock):
        path.unlink(missing_ok=True)


def key_of(nodes: Sequence[Node], dataset: ImageDataset, recipe: Recipe) -> str:
    """What a training is kept under: its network, its images and its recipe."""
    parts = [f"{node.layer.key}{node.inputs}" for node in nodes]
    text = " ".join([*parts, dataset.fingerprint, recipe.model_dump_json()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def images_per_second(space: SearchSpace, batch_size: int) -> float:
    """Of a training step of a network of middling size, measured."""
    drawn = space.sample(200, np.random.default_rng(0))
    arch = drawn[np.argsort(space.macs(drawn), kind="stable")[len(drawn) // 2]]
    nodes = space.layers(arch)
    network = StaticNetwork(nodes).to(pick_device())
    network.to(memory_format=torch.channels_last).train()
    size = network.resolution.size
    x = torch.randn(batch_size, space.in_channels, *size, device=pick_device())
    labels = torch.zeros(batch_size, dtype=torch.long, device=pick_device())
    times = []
    for _ in range(5):
        started = time.perf_counter()
        loss = CLASSIFICATION.loss(network(x), labels)
        loss.backward()
        times.append(time.perf_counter() - started + 0 * float(loss.detach()))
    return batch_size / float(np.median(times))
