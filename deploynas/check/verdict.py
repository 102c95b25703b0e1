"""Re-measure a model and judge it. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from deploynas.artifacts import sha256
from deploynas.check.limits import LATENCY, TITLES, WORDS, kind_of, measured
from deploynas.check.model_file import open_file
from deploynas.check.regression import Baseline, LatencyRecord, Regression, against, slower_layers
from deploynas.data import ImageDataset, Source, framed, normalise
from deploynas.device import Device, Estimate, Level, LocalDevice, Samples, StopRule, measure
from deploynas.errors import (
    EXIT_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_PASS,
    DeploynasError,
    InvalidInputError,
    MissingFileError,
)
from deploynas.export import Manifest
from deploynas.export.probe import TOLERANCE, flat, open_session, probes
from deploynas.graph.preprocess import centre
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.runtime import Array, Feeds
from deploynas.runtimes import of_file
from deploynas.spaces import Resolution

Verdict = Literal["pass", "over-budget", "regressed", "failed-gate", "inconclusive"]
INT8_TOLERANCE = 0.1  # of the largest recorded output
RULE = StopRule(precision=0.01, min_sessions=5, max_sessions=10, rounds=25, max_seconds=300.0)
EXIT_CODES: dict[Verdict, int] = {
    "pass": EXIT_PASS,
    "over-budget": EXIT_FAILED,
    "regressed": EXIT_FAILED,
    "failed-gate": EXIT_FAILED,
    "inconclusive": EXIT_INCONCLUSIVE,
}
GRAVITY: tuple[Verdict, ...] = ("failed-gate", "over-budget", "regressed", "inconclusive", "pass")


@dataclass(frozen=True)
class Examples:
    """Labelled test images, and how a model that takes them is fed.

    Attributes:
        split: The images, cropped.
        mean: A value a channel, a fraction of 1, as ``std``.
        num_classes: Of the data.
        crop: What a model which crops keeps: see :meth:`Resolution.part_of`.
        resolution: Of the network in such a model; None where a model takes whole images.
    """

    split: Source
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    crop: float = 1.0
    resolution: Resolution | None = None

    @classmethod
    def of(cls, dataset: ImageDataset, manifest: Manifest | None) -> Examples:
        """A data set's test images, prepared as the manifest says where there is one.

        Raises:
            InvalidInputError: The data has another number of classes than the network.
        """
        if manifest is None:
            return cls(dataset.test, dataset.mean, dataset.std, dataset.num_classes)
        if dataset.num_classes != len(manifest.classes):
            raise InvalidInputError(
                f"{dataset.source} has {dataset.num_classes} classes, the network "
                f"{len(manifest.classes)}"
            )
        prepared = dataset.with_channels(manifest.preprocessing.channels)
        own = manifest.preprocessing
        cropped = (own.crop, own.resolution) if own.image_size else ()
        return cls(prepared.test, own.mean, own.std, dataset.num_classes, *cropped)


@dataclass(frozen=True)
class Gate:
    """One thing that was judged.

    Attributes:
        name: For people and test reports: ``outputs``, ``latency``, ``regression``, ``accuracy``,
            ``size``, ``memory``, ``MACs``.
        reason: In a few words, with the measured value and the limit.
    """

    name: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class CheckResult:
    """A verdict and what it rests on.

    Attributes:
        verdict, reason: Of the gravest gate.
        gates: All of them.
        latency: Raw; this decides.
        latency_normalised: At the level of the profile that predicted, where there is one.
        differences: Hard fields in which this device differs from the profile's; where there
            are any, predicted and measured are not compared.
        regression: Against the baseline, where there is one.
        record: To compare later measurements with.
        taken: What else was limited -> what the file takes; None where the device does not tell.
    """

    verdict: Verdict
    reason: str
    gates: tuple[Gate, ...]
    latency: Estimate
    latency_normalised: Estimate | None
    budget_ms: float | None
    accuracy: float | None
    manifest: Manifest | None
    differences: list[str]
    regression: Regression | None
    record: LatencyRecord
    taken: Mapping[str, float | None] = field(default_factory=dict)


def load_target(target: Path) -> tuple[Path, Manifest | None]:
    """A model file, or an export folder with its manifest.

    Raises:
        MissingFileError: Neither is there.
        InvalidInputError: The model is not the one that the manifest describes, or empty.
    """
    if not target.is_dir():
        if not target.is_file():
            raise MissingFileError(f"{target} does not exist")
        open_file(target)
        return target, None
    folder_manifest = target / "manifest.json"
    manifest = Manifest.read(folder_manifest)
    model = target / next(iter(manifest.files))
    for name, digest in manifest.files.items():
        file = target / name
        if not file.is_file():
            raise MissingFileError(f"{file} does not exist")
        if file.stat().st_size and sha256(file) != digest:
            raise InvalidInputError(f"{file} is not the file that {folder_manifest} describes")
    open_file(model)
    return model, manifest


def size_of(model: Path) -> Resolution | None:
    """Of the image that a model takes; None where it takes none of a fixed size."""
    shapes = list(open_file(model).inputs.values())
    if len(shapes) != 1 or len(shapes[0]) not in (3, 4):
        return None
    *_, first, middle, last = shapes[0]
    sides = (middle, last) if first in (1, 3) else (first, middle)
    height, width = (side if isinstance(side, int) else 0 for side in sides)
    return Resolution(height, width) if height and width else None


def check(
    target: Path,
    device: Device,
    *,
    limits: Mapping[str, float] | None = None,
    baseline: Baseline | None = None,
    examples: Examples | None = None,
    min_accuracy: float | None = None,
    input_shapes: Sequence[str] = (),
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> CheckResult:
    """Measure ``target`` on ``device`` and judge it by every gate that is given.

    Args:
        target: A model file or an export folder.
        device: Measures.
        limits: Of the file, by the names of :mod:`deploynas.check.limits`; the latency that the
            manifest was searched under where none is among them.
        baseline: What it must not be slower than.
        examples: Labelled images.
        min_accuracy: Fraction of them.
        input_shapes: Of inputs whose own are dynamic; see :meth:`ModelFile.fixed`.
        on_progress: Called with what is going on and its share done.

    Raises:
        DeviceError: The runtime cannot load or run it.
        See also :func:`load_target` and :func:`against`.
    """
    file, manifest = load_target(target)
    whole = open_file(file)
    limits = dict(limits or {})
    budget = limits.pop(LATENCY, manifest.latency_budget_ms if manifest else None)
    regression, accuracy = None, None
    with temporary_folder() as folder:
        model = whole.fixed(input_shapes, folder)
        outputs = _outputs(model, file, manifest, device)
        taken = measured(limits, device, model, whole)
        if baseline is None:
            samples = measure_model(device, model, on_progress)
        else:
            if baseline.path.suffix != ".json":
                (folder / "baseline").mkdir()
                fixed = open_file(baseline.path).fixed(input_shapes, folder / "baseline")
                baseline = replace(baseline, path=fixed)
            regression = against(device, model, baseline, on_progress=on_progress)
            samples = regression.samples
            if regression.outcome == "regressed" and baseline.path.suffix != ".json":
                on_progress("which layers are slower", 1.0)
                with contextlib.suppress(DeploynasError):  # that it is slower stands without them
                    slower = slower_layers(device, model, baseline.path)
                    regression = replace(regression, slower=tuple(slower))
        if examples is not None:
            accuracy = file_accuracy(model, examples, on_progress)
    raw = samples.estimate()
    differences = manifest.device.differences(device.identity) if manifest else []
    normalised = None
    if manifest and not differences:
        normalised = samples.estimate(Level(manifest.core_ms, manifest.memory_ms))
    gates = []
    if budget is not None or regression is None:
        gates.append(Gate("latency", *judge(raw, normalised, budget)))
    if regression is not None:
        gates.append(Gate("regression", regression.outcome, regression.reason))
    if min_accuracy is not None and accuracy is not None:
        kept = accuracy >= min_accuracy
        text = f"accuracy {accuracy:.2%}, {'at least' if kept else 'below'} {min_accuracy:.2%}"
        gates.append(Gate("accuracy", "pass" if kept else "failed-gate", text))
    gates += [_limited(name, taken[name], limit) for name, limit in limits.items()]
    gates.append(outputs)
    gravest = min(gates, key=lambda gate: GRAVITY.index(gate.verdict))
    return CheckResult(
        gravest.verdict, gravest.reason, tuple(gates), raw, normalised, budget, accuracy, manifest,
        differences, regression, LatencyRecord.of(device, file, samples), taken,
    )  # fmt: skip


def _outputs(model: Path, file: Path, manifest: Manifest | None, device: Device) -> Gate:
    """Whether the answers to fixed inputs are numbers, and those that the export recorded."""
    try:
        feeds = probes(open_file(model).tensors)
    except ValueError as error:
        raise InvalidInputError(f"{file}: {error}") from None
    answers = [flat(outputs) for outputs in device.answers(model, feeds)]
    if not all(np.isfinite(answer).all() for answer in answers):
        return Gate("outputs", "failed-gate", "an output is not a number, or infinite")
    if manifest is None or not manifest.recorded_outputs:
        return Gate("outputs", "pass", "outputs are finite")
    expected = [np.array(one) for one in manifest.recorded_outputs]
    if [a.shape for a in answers] != [e.shape for e in expected]:
        return Gate("outputs", "failed-gate", "other outputs than the export recorded")
    difference = max(float(np.abs(a - e).max()) for a, e in zip(answers, expected, strict=True))
    largest = max(1.0, *(float(np.abs(e).max()) for e in expected))
    # processors round int8 differently: a step of an activation is a 255th of its range
    limit = largest * (INT8_TOLERANCE if manifest.quantization else TOLERANCE)
    kept = difference <= limit
    text = f"{difference:.1e} from the outputs that the export recorded, allowed {limit:.1e}"
    return Gate("outputs", "pass" if kept else "failed-gate", text)


def _limited(name: str, value: float | None, limit: float) -> Gate:
    title = TITLES[name]
    if value is None:
        return Gate(title, "inconclusive", f"the device does not tell {title}")
    kept = value >= limit if kind_of(name).at_least else value <= limit
    text = f"{value:,.0f} {WORDS[name]}, allowed {limit:,.0f}"
    return Gate(title, "pass" if kept else "failed-gate", text)


def judge(
    raw: Estimate, normalised: Estimate | None, budget_ms: float | None
) -> tuple[Verdict, str]:
    """Verdict on a latency budget, by whole intervals."""
    if budget_ms is None:
        return "pass", "measured; no budget was given"
    if raw.low > budget_ms:
        if normalised is not None and normalised.high <= budget_ms:
            return "inconclusive", "over budget now, within it at the profile's clock speed"
        return "over-budget", f"measured over {budget_ms:g} ms"
    if raw.high > budget_ms:
        return "inconclusive", f"the interval reaches over {budget_ms:g} ms"
    if normalised is not None and normalised.low > budget_ms:
        return "inconclusive", "within budget now, over it at the profile's clock speed"
    return "pass", f"measured within {budget_ms:g} ms"


def measure_model(
    device: Device, model: Path, on_progress: Callable[[str, float], None]
) -> Samples:
    """Time one model beside the reference set."""
    name = model.stem
    return measure(
        device, {name: model}, RULE, on_progress=lambda p: on_progress("measuring", p.done)
    )[name]


def measure_bytes(device: Device, content: bytes) -> Samples:
    """Time a model that is not a file yet."""
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        path.write_bytes(content)
        return measure_model(device, path, lambda text, share: None)


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


def file_accuracy(
    model: Path, examples: Examples, on_progress: Callable[[str, float], None]
) -> float:
    """Top-1 accuracy of the file on the test split, image by image, through its runtime here.

    A model that takes floats, channels first, gets normalised images; one that takes uint8,
    channels last, gets pixels, those of its own crop in the centre of a frame.
    """
    image, *others = open_file(model).tensors
    channels = examples.split.channels
    if others or len(image.shape) != 4:
        raise InvalidInputError(f"{model} does not take one batch of images: no accuracy of it")
    takes_pixels = image.type == "uint8" and image.shape[3] == channels
    height, width = image.shape[1:3] if takes_pixels else image.shape[2:]
    if not (isinstance(height, int) and isinstance(width, int)) or (
        not takes_pixels and image.shape[1] != channels
    ):
        raise InvalidInputError(
            f"{model} takes an image of shape {list(image.shape)}, the data has "
            f"{channels} channels"
        )
    num_classes = examples.num_classes
    box = centre(height, width, examples.crop, examples.resolution or Resolution(height, width))
    images, labels = examples.split, examples.split.labels
    correct = 0
    with _answering(model) as answer_to:
        for start in range(0, len(images), 500):
            rows = np.arange(start, min(start + 500, len(images)))
            pixels = framed(images.batch(rows, *box.size), height, width, *box)
            batch = pixels if takes_pixels else normalise(pixels, examples.mean, examples.std)
            for x, label in zip(batch, labels[start : start + 500], strict=True):
                answer = answer_to({image.name: x[None]})
                if answer.size != num_classes:
                    raise InvalidInputError(
                        f"{model} tells {answer.size} classes apart, the data has {num_classes}"
                    )
                correct += int(np.argmax(answer) == label)
            on_progress("test images", min(1.0, (start + 500) / len(images)))
    return correct / len(images)
