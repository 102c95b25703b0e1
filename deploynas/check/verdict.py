"""Re-measure a model and judge it. No torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from deploynas.artifacts import sha256
from deploynas.check.accuracy import Examples, file_accuracy
from deploynas.check.inputs import MAX_SAMPLES, NOTHING, Given, RealInputs
from deploynas.check.life import LIVED, LifeReport, lived
from deploynas.check.limits import ACCURACY, LATENCY, TITLES, kind_of, measured
from deploynas.check.model_file import RuntimeFile, is_onnx, open_file
from deploynas.check.regression import Baseline, LatencyRecord, Regression, against, slower_layers
from deploynas.costs import Quantity
from deploynas.device import Device, Estimate, Level, Samples, StopRule, measure
from deploynas.errors import (
    EXIT_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_PASS,
    DeploynasError,
    InvalidInputError,
    MissingFileError,
)
from deploynas.export import Manifest
from deploynas.export.formats import difference_between, tolerance
from deploynas.export.manifest import ONNX_NAME
from deploynas.export.probe import TOLERANCE, flat, probe_answers, probes
from deploynas.graph.model_file import ModelFile
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.life import LifeRule
from deploynas.onboard.runtime import Feeds
from deploynas.runtimes import RUNTIMES

Verdict = Literal["pass", "over-budget", "regressed", "failed-gate", "inconclusive"]
INT8_TOLERANCE = 0.1  # of the largest recorded output: other processors round otherwise
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
        taken: What else was limited -> what the file takes; None where that cannot be told.
        elsewhere: Latencies of other devices that the network was searched under -> limit: no gate
            here.
        life: Of a call, where it was asked for.
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
    elsewhere: Mapping[str, float] = field(default_factory=dict)
    life: LifeReport | None = None


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
    for name, digest in manifest.files.items():
        file = target / name
        if name != Path(name).name:
            raise InvalidInputError(f"{folder_manifest} names {name!r}, which is not beside it")
        if not file.is_file():
            raise MissingFileError(f"{file} does not exist")
        if sha256(file) != digest:
            what = "not the file" if file.stat().st_size else "empty, and not the file"
            raise InvalidInputError(f"{file} is {what} that {folder_manifest} describes")
    model = target / next(iter(manifest.files))
    open_file(model)
    _require_same_words(ModelFile(target / ONNX_NAME), manifest, folder_manifest)
    return model, manifest


def _require_same_words(model: ModelFile, manifest: Manifest, file: Path) -> None:
    """Classes and preprocessing, which an export's model notes as well.

    Raises:
        InvalidInputError: The manifest says something else.
    """
    noted = model.metadata
    own: dict[str, object] = {
        "classes": list(manifest.classes),
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
    }
    differs = [name for name in own.keys() & noted.keys() if _json(noted[name]) != own[name]]
    if differs:
        raise InvalidInputError(
            f"{file} was edited: {model.path} notes other {' and '.join(sorted(differs))}",
            f"undo the edit, or {Manifest.ANEW}",
        )


def _json(text: str) -> object:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def check(
    target: Path,
    device: Device,
    *,
    limits: Mapping[str, float] | None = None,
    baseline: Baseline | None = None,
    examples: Examples | None = None,
    given: Given = NOTHING,
    life: LifeRule | None = None,
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
        given: Shapes of open inputs, real inputs, and the batch.
        life: How the life of a call is measured; None where nothing of it is asked, or limited.
        on_progress: Called with what is going on and its share done.

    Raises:
        DeviceError: The runtime cannot load or run it.
        See also :func:`load_target` and :func:`against`.
    """
    file, manifest = load_target(target)
    whole = open_file(file)
    limits = dict(limits or {})
    own = manifest.latency_budget_ms if manifest and given.batch == 1 else None
    budget = limits.pop(LATENCY, own)
    if life is None and LIVED.keys() & limits.keys():
        life = LifeRule()
    regression, accuracy, lives = None, None, None
    with temporary_folder() as folder:
        real = given.samples(whole)
        model = given.model(whole, real, folder)
        if examples is not None:  # first, as the images may not fit the model
            accuracy = file_accuracy(model, examples, on_progress)
        outputs = _outputs(model, file, manifest, device, real)
        taken = measured(limits, device, model, whole)
        timed = given.timed(model, folder)
        if life is not None:
            lives = lived(device, timed, life, given.batch, on_progress)
        if baseline is None:
            samples = measure_model(device, timed, on_progress)
        else:
            if baseline.path.suffix != ".json":
                (folder / "baseline").mkdir()
                before = open_file(baseline.path)
                before.require_own_weights(whole)
                fixed = given.model(before, real, folder / "baseline")
                baseline = replace(baseline, path=given.timed(fixed, folder / "baseline"))
            regression = against(device, timed, baseline, on_progress=on_progress)
            samples = regression.samples
            if regression.outcome == "regressed" and baseline.path.suffix != ".json":
                on_progress("which layers are slower", 1.0)
                with contextlib.suppress(DeploynasError):  # that it is slower stands without them
                    slower = slower_layers(device, timed, baseline.path)
                    regression = replace(regression, slower=tuple(slower))
    raw = samples.estimate()
    differences = manifest.device.differences(device.identity) if manifest else []
    normalised = None
    if manifest and not differences and given.batch == 1:
        normalised = samples.estimate(Level(manifest.core_ms, manifest.memory_ms))
    gates = []
    if budget is not None or regression is None:
        gates.append(Gate("latency", *judge(raw, normalised, budget)))
    if regression is not None:
        gates.append(Gate("regression", regression.outcome, regression.reason))
    taken.update({ACCURACY: accuracy} if ACCURACY in limits else {})
    for name, limit in limits.items():
        if lives is not None and name in LIVED:
            gates.append(_lives_within(name, lives.estimates[name], limit))
        else:
            gates.append(_limited(name, taken[name], limit))
    gates.append(outputs)
    gravest = min(gates, key=lambda gate: GRAVITY.index(gate.verdict))
    return CheckResult(
        gravest.verdict, gravest.reason, tuple(gates), raw, normalised, budget, accuracy, manifest,
        differences, regression, LatencyRecord.of(device, file, samples), taken,
        manifest.elsewhere if manifest else {}, lives,
    )  # fmt: skip


def _outputs(
    model: Path, file: Path, manifest: Manifest | None, device: Device, real: RealInputs
) -> Gate:
    """Whether the answers to fixed inputs are numbers, and those that are expected.

    Expected are those of ONNX Runtime here where the device converts an ONNX file, and those that
    the export recorded.
    """
    try:
        noise = probes(open_file(model).inputs)
    except ValueError as error:
        raise InvalidInputError(f"{file}: {error}", "give real ones: --inputs NAME=FILE") from None
    feeds: list[Feeds] = [
        {**noise[i % len(noise)], **{name: arrays[i] for name, arrays in real.items()}}
        for i in range(min(MAX_SAMPLES, *(len(arrays) for arrays in real.values())) if real else 0)
    ] or noise
    said = _unseen(open_file(model))
    answers = _answers(device, model, feeds)
    finite = "outputs are finite"
    if not _are_finite(answers):
        text = "an output is not a number, or infinite"
        if real or manifest:
            return Gate("outputs", "failed-gate", text)
        said = f"; the input was noise: give real ones, --inputs NAME=FILE{said}"
        feeds = [_positive(one) for one in noise]
        answers = _answers(device, model, feeds)
        if not _are_finite(answers):
            return Gate("outputs", "failed-gate", text + said)
        finite = "outputs are finite for positive numbers alone"
    if _converts(device, model):
        difference = difference_between(answers, probe_answers(model, feeds))
        gate = parity_gate(difference, tolerance(quantized=ModelFile(model).is_quantized))
        if gate.verdict != "pass":
            return gate
        finite = f"{finite}, {gate.reason}"
    if manifest is None or not manifest.recorded_outputs:
        return Gate("outputs", "pass", f"{finite}{said}")
    if real:
        answers = _answers(device, model, noise)
    expected = [np.array(one) for one in manifest.recorded_outputs]
    if [a.shape for a in answers] != [e.shape for e in expected]:
        return Gate("outputs", "failed-gate", "other outputs than the export recorded")
    found, wanted = np.concatenate(answers), np.concatenate(expected)
    difference = float(np.abs(found - wanted).max())
    is_int8 = manifest.quantization is not None
    largest = max(1.0, float(np.abs(wanted).max()))
    limit = max(  # another processor, or another runtime
        largest * (INT8_TOLERANCE if is_int8 else TOLERANCE),
        float(wanted.std()) * tolerance(quantized=is_int8),
    )
    kept = difference <= limit
    text = f"{difference:.1e} from the outputs that the export recorded, allowed {limit:.1e}"
    return Gate("outputs", "pass" if kept else "failed-gate", text)


def parity_gate(difference: float, allowed: float) -> Gate:
    """Whether a file answers on a runtime as its ONNX file does; see ``export.formats``."""
    kept = difference <= allowed
    text = f"{difference:.1e} of the outputs' deviation from ONNX Runtime's, allowed {allowed:g}"
    if kept:
        return Gate("outputs", "pass", text)
    return Gate("outputs", "failed-gate", f"it answers otherwise: {text}")


def _converts(device: Device, model: Path) -> bool:
    """Whether the device runs another format than an ONNX file's, into which it is converted."""
    if not is_onnx(model):
        return False
    name, _, _ = device.identity.runtime.partition(" ")
    return RUNTIMES.load(name).suffix != ".onnx"


def _answers(device: Device, model: Path, feeds: list[Feeds]) -> list[npt.NDArray[np.float64]]:
    return [flat(outputs) for outputs in device.answers(model, feeds)]


def _are_finite(answers: list[npt.NDArray[np.float64]]) -> bool:
    return all(np.isfinite(answer).all() for answer in answers)


def _positive(feeds: Feeds) -> Feeds:
    """Noise above a half, for what takes logarithms or roots."""
    return {
        n: np.abs(x) + x.dtype.type(0.5) if x.dtype.kind == "f" else x for n, x in feeds.items()
    }


def _unseen(file: ModelFile | RuntimeFile) -> str:
    """Which outputs are no numbers, as the end of a sentence."""
    return f"; not looked at, as it is text: {', '.join(file.texts)}" if file.texts else ""


def _limited(name: str, value: float | None, limit: float) -> Gate:
    title, kind = TITLES.get(name, name), kind_of(name)
    if value is None:
        return Gate(title, "inconclusive", f"neither the file nor the device tells {title}")
    kept = kind.share(value, limit) <= 1
    shown = [kind.format(one) for one in (value, limit)]
    if shown[0] == shown[1]:  # what decides is beyond the digits for people
        shown = [f"{one:,.10g}" for one in (value, limit)]
    text = f"{shown[0]} where {shown[1]} is {_asked(kind)}"
    return Gate(title, "pass" if kept else "failed-gate", text)


def _lives_within(name: str, found: Estimate | None, limit: float) -> Gate:
    """A limit on what has an interval, by the whole of it."""
    kind = LIVED[name]
    if found is None:
        return Gate(name, "inconclusive", f"{name} cannot be told: {kind.lacking}")
    low, high, allowed = (kind.format(x) for x in (found.low, found.high, limit))
    text = f"{kind.format(found.median)} ({low} to {high}) where {allowed} is {_asked(kind)}"
    shares = [kind.share(x, limit) for x in (found.low, found.high)]
    if max(shares) <= 1:
        return Gate(name, "pass", text)
    return Gate(name, "failed-gate" if min(shares) > 1 else "inconclusive", text)


def _asked(kind: type[Quantity]) -> str:
    return "the least" if kind.at_least else "allowed"


def judge(
    raw: Estimate, normalised: Estimate | None, budget_ms: float | None
) -> tuple[Verdict, str]:
    """Verdict on a latency budget, by whole intervals."""
    if budget_ms is None:
        return "pass", "measured; no budget was given"
    if raw.low > budget_ms:
        if normalised is not None and normalised.high <= budget_ms:
            return "inconclusive", "over budget now, within it at the prediction's clock speed"
        return "over-budget", f"measured over {budget_ms:g} ms"
    if raw.high > budget_ms:
        return "inconclusive", f"the interval reaches over {budget_ms:g} ms"
    if normalised is not None and normalised.low > budget_ms:
        return "inconclusive", "within budget now, over it at the prediction's clock speed"
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
