"""The network that a search chose: kept beside its result, and opened again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from deploynas.artifacts import RUNS, Artifact, newest, sha256, unchanged, write_together
from deploynas.data import ImageDataset
from deploynas.errors import InvalidInputError
from deploynas.export.exporter import PARITY_IMAGES, TrainedNetwork
from deploynas.export.manifest import BatchNorm, Weights
from deploynas.nn import StaticNetwork
from deploynas.search import Candidate, SearchResult
from deploynas.spaces import SearchSpace, SpaceRecord, recorded_space
from deploynas.train import SupernetEvaluator, load_weights, pick_device, weights_of
from deploynas.workflows.supernets import TrainedSupernet, open_supernet


def open_run(run: Path | None, on_pick: Callable[[Path], None]) -> tuple[Path, SearchResult]:
    """A search's run (the newest where None).

    Raises:
        MissingFileError, InvalidInputError: There is none, or it is damaged.
    """
    if run is None:
        hint = "make one: deploynas search --latency-ms 10"
        run = newest("*/search.json", RUNS, "search result", hint).parent
        on_pick(run)
    file = SearchResult.file_in(run)
    result = SearchResult.read(file)
    best, chosen = result.best, space_of(result.space)
    arch = chosen.encode([best.architecture])
    said = best.macs, best.params
    if said != (int(chosen.macs(arch)[0]), int(chosen.params(arch)[0])):
        raise InvalidInputError(
            f"{file} was edited or damaged: its MACs and params are not those of its architecture",
            f"undo the edit, or {SearchResult.ANEW}",
        )
    return run, result


class ChosenRecord(Artifact):
    """``chosen.json`` beside the chosen network's weights.

    Format 1: first version; 2 (0.1.0): a digest.

    Written where the search is the only one who has them: under published weights, which it
    recalibrates, or under the weights of a gradient search.

    Attributes:
        batch_norm: Whether the statistics were set for this network.
        images: Folder of the images that set them, where that is not the data set.
        search_sha256: Of the ``search.json`` whose network this is.
    """

    SCHEMA = "deploynas-chosen"
    VERSION = 2
    ANEW = "search again: deploynas search"
    MIGRATIONS = {1: unchanged}

    batch_norm: BatchNorm
    images: str | None
    num_images: int
    weights_sha256: str
    search_sha256: str

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "chosen.json"


def save_chosen(
    run: Path,
    result: SearchResult,
    network: StaticNetwork,
    *,
    num_images: int,
    images: Path | None = None,
) -> None:
    """Write a search's result, and its chosen network beside it, as one step.

    Args:
        run: Directory.
        result: ``search.json``.
        network: With its weights.
        num_images: That set its batch-norm statistics; 0 where they are not its own.
        images: Their folder, where that is not the data set.
    """
    weights = weights_of(network)
    record = ChosenRecord(
        batch_norm="calibrated" if num_images else "uncalibrated",
        images=None if images is None else str(images),
        num_images=num_images,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        search_sha256=hashlib.sha256(result.content).hexdigest(),
    )
    chosen, search = ChosenRecord.file_in(run), SearchResult.file_in(run)
    files = {
        chosen.with_suffix(".safetensors").name: weights,
        chosen.name: record.content,
        search.name: result.content,
    }
    write_together(run, files, search.name)


def inherited(
    result: SearchResult, candidate: Candidate, supernet: TrainedSupernet
) -> TrainedNetwork:
    """One of a result's networks with the supernet's weights, batch norms recalibrated."""
    arch = supernet.network.space.encode([candidate.architecture])[0]
    network = SupernetEvaluator(supernet.network, supernet.dataset).extract(arch)
    return TrainedNetwork(
        network, candidate, space_of(result.space), result.data,
        supernet.dataset.test.first(PARITY_IMAGES), "inherited",
    )  # fmt: skip


def open_chosen(run: Path, result: SearchResult, dataset: ImageDataset) -> TrainedNetwork:
    """The chosen network with the weights that the search judged it by.

    A network of a trained supernet is extracted, its batch norms recalibrated on ``dataset``; any
    other comes as the search saved it.
    """
    if result.has_file:
        return open_saved(run, result, dataset)
    supernet = open_supernet(Path(result.supernet), dataset, other_data=True)
    return inherited(result, result.best, supernet)


def open_saved(run: Path, result: SearchResult, dataset: ImageDataset | None) -> TrainedNetwork:
    """The chosen network as its search saved it.

    Args:
        run: Directory.
        result: Of the search.
        dataset: The search's, where it had one.

    Raises:
        InvalidInputError: It belongs to an earlier search, or the weights are damaged.
    """
    record = ChosenRecord.read(ChosenRecord.file_in(run))
    path = own_weights(run, ChosenRecord.file_in(run), record, "search again")
    chosen = space_of(result.space)
    size = result.data.size
    images = np.zeros((0, *size.size, 3), np.uint8)
    if result.has_images and dataset is not None:
        images = dataset.test.first(PARITY_IMAGES)
    elif record.images and Path(record.images).is_dir():
        from deploynas.data.imagenet import load_unlabelled

        images = load_unlabelled(Path(record.images), size.height, PARITY_IMAGES)
    kinds: dict[str, Weights] = {"published": "published", "trained": "from-scratch"}
    kind = kinds.get(result.weights, "inherited")
    return TrainedNetwork(
        load(chosen, result.best, path), result.best, chosen, result.data, images, kind,
        record.batch_norm,
    )  # fmt: skip


class OfSearch(Protocol):
    """A record of weights beside it, that belong to a search's result."""

    @property
    def search_sha256(self) -> str:
        """Of the ``search.json``."""

    @property
    def weights_sha256(self) -> str:
        """Of the weights."""


def own_weights(run: Path, file: Path, record: OfSearch, hint: str) -> Path:
    """The weights beside a record of a search's network.

    Raises:
        InvalidInputError: They belong to an earlier search of the run, or are damaged.
    """
    path = file.with_suffix(".safetensors")
    if record.search_sha256 != sha256(SearchResult.file_in(run)):
        raise InvalidInputError(f"{path} belongs to an earlier search of {run}", hint)
    if not path.exists() or sha256(path) != record.weights_sha256:
        raise InvalidInputError(f"{path} is not what {file} says", hint)
    return path


def load(chosen: SearchSpace, candidate: Candidate, path: Path) -> StaticNetwork:
    """A candidate with the weights of a file."""
    network = StaticNetwork(chosen.layers(chosen.encode([candidate.architecture])[0]))
    load_weights(path, network)
    return network.to(pick_device()).eval()


def space_of(spec: SpaceRecord, num_classes: int | None = None) -> SearchSpace:
    """A result's space, for another number of classes where that is given."""
    changed = spec if num_classes is None else spec | {"num_classes": num_classes}
    return recorded_space(changed)
