"""Real inputs of a model, from files: what it is asked and timed with in place of noise."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deploynas.check.batch import batched
from deploynas.check.model_file import RuntimeFile
from deploynas.contents import require_own
from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.graph.model_file import ModelFile
from deploynas.onboard.runtime import Array, Input, inputs_beside

SUFFIXES = (".npy", ".npz")
MAX_SAMPLES = 32  # that a model is asked
RealInputs = dict[str, list[Array]]
"""Name of an input -> arrays as it takes them, one a sample."""


class Given(NamedTuple):
    """What is said of a model's inputs.

    Attributes:
        shapes: Of open ones: ``1,3,224,224``, or ``NAME=...`` each.
        files: Real ones; see :func:`read_inputs`.
        batch: Inputs that a call which is timed takes at once.
    """

    shapes: Sequence[str] = ()
    files: Sequence[str] = ()
    batch: int = 1

    def samples(self, file: ModelFile | RuntimeFile) -> RealInputs:
        """What the files hold."""
        return read_inputs(self.files, file.inputs, file.path)

    def model(self, file: ModelFile | RuntimeFile, samples: RealInputs, folder: Path) -> Path:
        """The file to measure, the first sample beside it; see :meth:`ModelFile.fixed`.

        An open shape that is not said is that of the sample.
        """
        said = {text.rpartition("=")[0] for text in self.shapes}
        typed = list(self.shapes)
        for one in file.inputs:
            if one.name in samples and not (one.name in said or "" in said):
                sides = samples[one.name][0].shape
                typed += [f"{one.name}={','.join(map(str, sides))}"] if sides else []
        model = file.fixed(typed, folder, apart=bool(samples))
        if samples:
            with zipfile.ZipFile(inputs_beside(model), "w") as archive:
                for name, arrays in samples.items():
                    with archive.open(f"{name}.npy", "w") as out:
                        np.lib.format.write_array(out, arrays[0], allow_pickle=False)
        return model

    def timed(self, model: Path, folder: Path) -> Path:
        """What is timed: ``model`` of :meth:`model`, or that with a batch; see :func:`batched`."""
        return model if self.batch == 1 else batched(model, self.batch, folder)


NOTHING = Given()


def read_inputs(typed: Sequence[str], inputs: Sequence[Input], model: Path) -> RealInputs:
    """Inputs from files.

    Args:
        typed: ``NAME=FILE`` each, or ``FILE`` alone: an ``.npy`` of one array, an ``.npz`` of
            arrays by the names of the inputs, or a folder of these, a sample each. An array that
            has one axis more than the input, or a longer first one, is a sample a row.
        inputs: Of the model.
        model: Named in messages.

    Raises:
        MissingFileError, InvalidInputError: A file is not there or is another one, does not fit
            the input, or is not of as many samples as the others.
    """
    by_name = {one.name: one for one in inputs}
    found: RealInputs = {}
    for text in typed:
        name, _, where = text.rpartition("=")
        for path in _files(Path(where)):
            for key, array in _arrays(path, name, list(by_name)).items():
                if key not in by_name:
                    raise InvalidInputError(
                        f"{model} has no input {key!r}, but {', '.join(by_name) or 'none at all'}"
                    )
                found.setdefault(key, []).extend(_samples(array, by_name[key], path))
    counts = {len(samples) for samples in found.values()}
    if len(counts) > 1:
        listed = ", ".join(f"{len(samples)} of {name!r}" for name, samples in found.items())
        raise InvalidInputError(f"--inputs has {listed}: each sample needs all of them")
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not found:
        raise InvalidInputError(f"{path} holds no .npy and no .npz files")
    return found


def _arrays(path: Path, name: str, known: Sequence[str]) -> dict[str, Array]:
    """Name of an input -> what a file has for it."""
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist")
    require_own(path, "an array")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if not name and len(known) != 1:
                raise InvalidInputError(
                    f"the model has the inputs {', '.join(known)}: write --inputs NAME={path}"
                )
            return {name or known[0]: loaded}
        with loaded:
            arrays = dict(loaded)
        if not arrays or not all(isinstance(one, np.ndarray) for one in arrays.values()):
            raise ValueError  # bytes, where an entry is no array
    except InvalidInputError:
        raise
    except Exception:  # whatever a damaged archive makes numpy raise
        raise InvalidInputError(
            f"{path} is no .npy or .npz file of numbers", "write one with numpy.save"
        ) from None
    if name and len(arrays) == 1:
        return {name: next(iter(arrays.values()))}
    return {name: arrays[name]} if name and name in arrays else arrays


def _samples(array: Array, one: Input, path: Path) -> list[Array]:
    """An array as samples of an input."""
    shape = list(one.shape)
    rows = [array]
    if array.ndim == len(shape) + 1:
        rows = list(array)
    elif array.ndim == len(shape) and shape[:1] == [1] and len(array) > 1:
        rows = [row[None] for row in array]
    elif array.ndim == len(shape) - 1:
        rows = [array[None]]
    if not rows:
        raise InvalidInputError(f"{path} holds no sample: its shape is {list(array.shape)}")
    fitting = []
    for row in rows:
        fits = row.ndim == len(shape) and all(
            side == own or not isinstance(own, int)
            for side, own in zip(row.shape, shape, strict=True)
        )
        if not fits:
            raise InvalidInputError(
                f"{path} has the shape {list(array.shape)}, input {one.name!r} takes {shape}"
            )
        fitting.append(_typed(row, one, path))
    return fitting


def _typed(row: Array, one: Input, path: Path) -> Array:
    """An array in the input's type, where that loses nothing but digits of floats."""
    try:
        kind = np.dtype(one.type)
    except TypeError:
        raise InvalidInputError(
            f"input {one.name!r} takes {one.type}, which no file of numbers holds"
        ) from None
    cast = row.astype(kind) if row.dtype.kind in "biuf" else row
    floats = row.dtype.kind == "f" and kind.kind == "f"
    if cast.dtype != kind or not (floats or np.array_equal(cast, row)):
        raise InvalidInputError(
            f"{path} holds {row.dtype}, input {one.name!r} takes {one.type}, and it does not fit"
        )
    return np.ascontiguousarray(cast)
