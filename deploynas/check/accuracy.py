"""Top-1 accuracy of a model file: which images it takes, and how they are prepared for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploynas.check.model_file import open_file
from deploynas.contents import require_own
from deploynas.data import ImageDataset, Pixels, Source, framed, normalise
from deploynas.device import LocalDevice
from deploynas.errors import InvalidInputError, require_positive
from deploynas.export import Manifest
from deploynas.export.probe import open_session
from deploynas.graph.preprocess import Box, centre
from deploynas.onboard.runtime import Array, Feeds
from deploynas.runtimes import of_file
from deploynas.spaces import Resolution

BATCH = 500  # images that are decoded at once
FLOATS = ("float32", "float16", "float64")


class Recipe(NamedTuple):
    """How a model that says nothing of itself is fed, as far as somebody says.

    Attributes:
        classes: In the order of the model's outputs; the data's order where None.
        mean: A value a channel, a fraction of 1; the data's own where None.
        std: The same.
        crop: Share of the shorter side that is kept, in the centre.
    """

    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nobody says anything."""
        return self == Recipe()

    @classmethod
    def parse(
        cls, classes: Path | None, mean: str | None, std: str | None, crop: float | None
    ) -> Recipe:
        """From what was typed.

        Raises:
            MissingFileError, InvalidInputError: It cannot be read, or is out of range.
        """
        if crop is not None and not 0 < crop <= 1:
            raise InvalidInputError(f"--crop is a share of the shorter side, 0 to 1, got {crop:g}")
        scale = _numbers(std, "--std")
        for value in scale or ():
            require_positive(value, "--std")
        names = None if classes is None else read_classes(classes)
        return cls(names, _numbers(mean, "--mean"), scale, crop)


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, in the order of a model's outputs.

    Raises:
        MissingFileError, InvalidInputError: It is not there, no text, or a name is there twice.
    """
    require_own(path, "a list of classes")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InvalidInputError(f"{path} is no text: it should name a class a line") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"{path} names the class {twice!r} twice")
    return names


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(-10 <= number <= 10 for number in numbers):
        raise InvalidInputError(
            f"{option} is a fraction of 1 for every channel, got {text!r}",
            f"for example {option} 0.485,0.456,0.406",
        )
    return numbers


@dataclass(frozen=True)
class ImageInput:
    """The one image that a model takes.

    Attributes:
        name, type: Of the input.
        last: Whether its channels come last.
    """

    name: str
    type: str
    height: int
    width: int
    channels: int
    last: bool

    @classmethod
    def of(cls, model: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> ImageInput:
        """What a file takes.

        Args:
            model: The file.
            shapes: Of its inputs, where they are not fixed in it.

        Raises:
            InvalidInputError: Something else than one image; no accuracy of it.
        """
        inputs = open_file(model).inputs
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise InvalidInputError(
                f"{model} does not take one batch of images: no accuracy of it"
            )
        name, shape, kind = inputs[0]
        shape = (shapes or {}).get(name, shape)
        if not all(isinstance(side, int) for side in shape) or shape[0] != 1:
            raise InvalidInputError(
                f"{model} takes {list(shape)}, and accuracy is of one image at a time",
                "export it with a batch of one, or an open one",
            )
        last = shape[3] in (1, 3) and shape[1] not in (1, 3)
        channels, height, width = (shape[3], *shape[1:3]) if last else shape[1:]
        if channels not in (1, 3):
            raise InvalidInputError(
                f"{model} takes {list(shape)}, images have 1 or 3 channels: no accuracy of it"
            )
        if kind not in ("uint8", *FLOATS):
            raise InvalidInputError(f"{model} takes {kind}, no pixels: no accuracy of it")
        return cls(name, kind, height, width, channels, last)

    @property
    def takes_pixels(self) -> bool:
        """Whether it takes levels of 255, not normalised numbers."""
        return self.type == "uint8"


@dataclass(frozen=True)
class Examples:
    """Labelled test images, and how a model that takes them is fed.

    Attributes:
        split: The images, cropped.
        mean: A value a channel, a fraction of 1, as ``std``.
        num_classes: That the model tells apart.
        crop: What a model which crops keeps: see :meth:`Resolution.part_of`.
        resolution: Of the network in such a model; None where a model takes whole images.
        cut: Share of the shorter side that is kept of an image before a model gets it.
        outputs: int64, label of the data -> output of the model; the same where None.
        told: How they are prepared, for people.
    """

    split: Source
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    crop: float = 1.0
    resolution: Resolution | None = None
    cut: float = 1.0
    outputs: npt.NDArray[np.int64] | None = None
    told: str = ""

    @classmethod
    def of(
        cls, dataset: ImageDataset, manifest: Manifest | None, recipe: Recipe | None = None
    ) -> Examples:
        """A data set's test images, prepared as the manifest says where there is one.

        Args:
            dataset: With the model's channels, where it has no manifest.
            manifest: Of an export.
            recipe: For a model without one.

        Raises:
            InvalidInputError: The data has other classes than the network.
        """
        if manifest is not None:
            prepared = dataset.with_channels(manifest.preprocessing.channels)
            own = manifest.preprocessing
            outputs = _outputs(dataset, manifest.classes, "the network")
            crops = own.image_size is not None
            return cls(
                prepared.test, own.mean, own.std, len(manifest.classes),
                crop=own.crop if crops else 1.0, resolution=own.resolution if crops else None,
                outputs=outputs, told=f"{_means(own.mean, own.std)} as the export says",
            )  # fmt: skip
        asked = recipe or Recipe()
        mean = _fitting(asked.mean, dataset, "--mean") or dataset.mean
        std = _fitting(asked.std, dataset, "--std") or dataset.std
        classes = asked.classes or dataset.classes
        cut = 1.0 if asked.crop is None else asked.crop
        is_own = asked.mean is None or asked.std is None
        whose = [
            "of the data's own, which a model may not expect" if is_own else "as asked",
            f"the centre {cut:.1%} kept" if cut < 1 else "whole images",
            f"{len(classes)} classes "
            + ("as listed" if asked.classes else f"in the order {_first(classes)}"),
        ]
        return cls(
            dataset.test, mean, std, len(classes), cut=cut,
            outputs=_outputs(dataset, classes, "--classes"),
            told=f"{_means(mean, std)} {'; '.join(whose)}",
        )  # fmt: skip


def _means(mean: Sequence[float], std: Sequence[float]) -> str:
    numbers = (",".join(f"{x:.3g}" for x in values) for values in (mean, std))
    return "mean {} and standard deviation {}".format(*numbers)


def _first(classes: Sequence[str]) -> str:
    return ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")


def _fitting(
    values: tuple[float, ...] | None, dataset: ImageDataset, option: str
) -> tuple[float, ...] | None:
    """A value a channel: one is that of all."""
    if values is None or len(values) == dataset.channels:
        return values
    if len(values) == 1:
        return values * dataset.channels
    raise InvalidInputError(f"{option} has {len(values)} values, the model takes one channel")


def _outputs(
    dataset: ImageDataset, classes: Sequence[str], who: str
) -> npt.NDArray[np.int64] | None:
    """Label of the data -> place of its class among ``classes``; None where they are the same.

    Raises:
        InvalidInputError: One of the data's classes is not among them.
    """
    if tuple(classes) == dataset.classes:
        return None
    places = {name: place for place, name in enumerate(classes)}
    lacking = [name for name in dataset.classes if name not in places]
    if lacking:
        counts = f"{len(dataset.classes)} classes, {who} {len(classes)}"
        raise InvalidInputError(
            f"{dataset.source} has {counts}; {who} does not know {_first(lacking)}, but "
            f"{_first(classes)}"
        )
    return np.array([places[name] for name in dataset.classes], dtype=np.int64)


def file_accuracy(
    model: Path, examples: Examples, on_progress: Callable[[str, float], None]
) -> float:
    """Top-1 accuracy of the file on the test split, image by image, through its runtime here.

    A model that takes floats gets normalised images; one that takes uint8 gets pixels, those of
    its own crop in the centre of a frame. Channels come first or last as its input has them.

    Raises:
        InvalidInputError: The model does not take these images, or has other outputs.
    """
    image = ImageInput.of(model)
    images, labels = examples.split, examples.split.labels
    if image.channels != images.channels:
        raise InvalidInputError(
            f"{model} takes an image of {image.channels} channels, the data has {images.channels}"
        )
    if examples.outputs is not None:
        labels = examples.outputs[labels]
    correct = 0
    with _answering(model) as answer_to:
        for start in range(0, len(images), BATCH):
            rows = np.arange(start, min(start + BATCH, len(images)))
            for x, label in zip(prepared(image, examples, rows), labels[rows], strict=True):
                answer = answer_to({image.name: x[None]})
                if answer.size != examples.num_classes:
                    raise InvalidInputError(
                        f"{model} tells {answer.size} classes apart, the data has "
                        f"{examples.num_classes}",
                        "name the model's, one a line: --classes labels.txt",
                    )
                correct += int(np.argmax(answer) == label)
            on_progress("test images", min(1.0, (start + BATCH) / len(images)))
    return correct / len(images)


def prepared(
    image: ImageInput, examples: Examples, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.generic]:
    """Images as the model takes them, ``(m, ...)``."""
    size = Resolution(image.height, image.width)
    box = centre(image.height, image.width, examples.crop, examples.resolution or size)
    pixels = _cut(examples, rows, box)
    frames = framed(pixels, image.height, image.width, *box)
    if image.takes_pixels:
        return frames if image.last else np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    batch = normalise(frames, examples.mean, examples.std).astype(image.type, copy=False)
    return np.ascontiguousarray(batch.transpose(0, 2, 3, 1)) if image.last else batch


def _cut(examples: Examples, rows: npt.NDArray[np.int64], box: Box) -> Pixels:
    """The kept part of some images at the size of ``box``: resized, then cut, as is usual."""
    if examples.cut == 1:
        return examples.split.batch(rows, *box.size)
    wide = [round(side / examples.cut) for side in box.size]
    top, left = (round((whole - side) / 2) for whole, side in zip(wide, box.size, strict=True))
    images = examples.split.batch(rows, *wide)
    return images[:, top : top + box.size[0], left : left + box.size[1]]


@contextlib.contextmanager
def _answering(model: Path) -> Iterator[Callable[[Feeds], Array]]:
    """A model's first output for a batch of one, by its own runtime on this machine."""
    runtime = of_file(model)
    if runtime.suffix != ".onnx":
        with LocalDevice(next(iter(runtime.devices))).opened([model]) as worker:
            yield lambda feeds: worker.answers(0, feeds)[0]
        return
    session = open_session(model, str(model))

    def answer(feeds: Feeds) -> Array:
        try:
            return np.asarray(session.run(None, dict(feeds))[0])
        except Exception as error:  # the runtime's own kinds have no common base
            line = str(error).strip().splitlines()[0]
            (image,) = feeds.values()
            raise InvalidInputError(
                f"{model} cannot be run on an image of shape {list(image.shape)} and type "
                f"{image.dtype}: {line}"
            ) from None

    yield answer
