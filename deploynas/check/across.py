"""One network on several runtimes of this machine: which of them runs it fastest. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploynas.check.model_file import is_onnx
from deploynas.check.regression import looks
from deploynas.check.verdict import Gate, Verdict, judge, load_target, parity_gate
from deploynas.device import Estimate, Identity, LocalDevice, Samples, StopRule
from deploynas.errors import DeviceError, InvalidInputError
from deploynas.export.formats import difference_of, tolerance
from deploynas.graph.model_file import ModelFile
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.timing import Round, estimate
from deploynas.runtimes import of_file

SESSION = StopRule(min_sessions=1, max_sessions=1, rounds=20, max_seconds=60.0)
MAX_SESSIONS = 9  # a look of regression.looks()
PRECISE = 0.02  # half-width of a ratio's interval that is good enough
LOADS = 3  # of which the fastest counts


@dataclass(frozen=True)
class Standing:
    """A network on one runtime.

    Attributes:
        identity: Of the device.
        latency: Raw.
        ratio: To the latency on the fastest runtime that answers rightly, round by round, with
            the interval of the last look; None for that one.
        parity: Largest difference of an output from ONNX Runtime's, in the outputs' deviation.
        file_bytes: Of the files that the runtime opens.
        load_ms: From these files to a network that is ready, without the start of a process.
        gate: Its outputs and, where there is a budget, its latency.
    """

    identity: Identity
    latency: Estimate
    ratio: Estimate | None
    parity: float
    file_bytes: int
    load_ms: float
    gate: Gate


@dataclass(frozen=True)
class Across:
    """What was found.

    Attributes:
        standings: By device, the fastest first.
        refused: Device -> why it cannot run the network.
        advice: Which to take, in a sentence.
        verdict: Of what to take.
    """

    standings: Mapping[str, Standing]
    refused: Mapping[str, str]
    advice: str
    verdict: Verdict


def across(
    target: Path,
    devices: Mapping[str, LocalDevice],
    *,
    budget_ms: float | None = None,
    input_shapes: Sequence[str] = (),
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> Across:
    """Measure ``target`` on every device, a round on each in turn.

    Sessions are drawn until the ratios to the fastest that answers rightly are precise, or tell
    which is faster. The error is spent over the looks at them, as :func:`looks` does, and over
    the pairs of runtimes, so that of all that are equally fast any two are told apart in 5 % of
    cases at most.

    Args:
        target: A model file or an export folder.
        devices: Of this machine.
        budget_ms: Latency; by default the export's.
        input_shapes: Of inputs whose own are dynamic; see :meth:`ModelFile.fixed`.
        on_progress: Called with what is going on and its share done.

    Raises:
        DeviceError: None of them can run it.
        See also :func:`deploynas.check.verdict.load_target`.
    """
    file, manifest = load_target(target)
    if not is_onnx(file):
        file = file.with_name("model.onnx")  # an export keeps it
        if manifest is None or not file.is_file():
            raise InvalidInputError(
                f"{target} runs on {of_file(target).name} alone", "name its ONNX file"
            )
    if budget_ms is None and manifest is not None:
        budget_ms = manifest.latency_budget_ms
    refused: dict[str, str] = {}
    parity, opened = {}, {}
    with temporary_folder() as folder:
        model = ModelFile(file).fixed(input_shapes, folder)
        allowed = tolerance(quantized=ModelFile(model).is_quantized)
        for number, (name, device) in enumerate(devices.items()):
            on_progress(f"opening it on {name}", number / len(devices))
            try:
                parity[name] = difference_of(device, model, model)
                opened[name] = device.opening(model, LOADS)
            except DeviceError as error:
                refused[name] = str(error)
            except ValueError as error:  # of its inputs, on whatever device
                raise InvalidInputError(f"{file}: {error}") from None
        able = {name: device for name, device in devices.items() if name in opened}
        if not able:
            name, reason = next(iter(refused.items()))
            raise DeviceError(f"none of {', '.join(devices)} runs {file}; {name}: {reason}")
        right = [name for name in able if parity[name] <= allowed] or list(able)
        samples, confidence = _interleaved(able, right, model, on_progress)
    fastest = _fastest({name: samples[name] for name in right})
    standings = {}
    for name in sorted(able, key=lambda name: samples[name].estimate().median):
        latency = samples[name].estimate()
        ratio = None
        if name != fastest:
            ratio = _ratio(samples[name], samples[fastest], confidence)
        gate = _gate(latency, parity[name], allowed, budget_ms)
        standings[name] = Standing(
            able[name].identity, latency, ratio, parity[name], *opened[name], gate
        )
    return Across(standings, refused, _advice(standings), standings[fastest].gate.verdict)


def _interleaved(
    devices: Mapping[str, LocalDevice],
    right: Sequence[str],
    model: Path,
    on_progress: Callable[[str, float], None],
) -> tuple[dict[str, Samples], float]:
    """Device -> samples, session by session and round by round in turn; the last confidence.

    Args:
        devices: By name.
        right: Those of them that are to be told apart.
        model: What they run.
        on_progress: Called with what is going on and its share done.
    """
    pairs = max(1, math.comb(len(right), 2))
    upcoming = looks()
    wanted, confidence = next(upcoming)
    samples = {name: {"model": Samples(model.stat().st_size)} for name in devices}
    rng = np.random.default_rng(0)
    for session in range(1, MAX_SESSIONS + 1):
        rule = replace(SESSION, min_sessions=session, max_sessions=session)
        running = {
            name: device.rounds({"model": model}, rule, samples[name], 0)
            for name, device in devices.items()
        }
        try:
            while running:
                for name in rng.permutation(list(running)):
                    if not _step(running[name]):
                        del running[name]
        finally:
            for rounds in running.values():
                rounds.close()
        on_progress("a round on each in turn", session / MAX_SESSIONS)
        if session < wanted:
            continue
        found = {name: samples[name]["model"] for name in right}
        fastest = _fastest(found)
        spent = 1 - (1 - confidence) / pairs
        others = [one for name, one in found.items() if name != fastest]
        if all(_tells(_ratio(one, found[fastest], spent)) for one in others):
            break
        wanted, confidence = next(upcoming)
    return {name: one["model"] for name, one in samples.items()}, spent


def _step(rounds: Generator[Round, None, None]) -> bool:
    """Whether there was another round."""
    return next(rounds, None) is not None


def _tells(ratio: Estimate) -> bool:
    return ratio.low > 1 or ratio.half_width < PRECISE


def _fastest(samples: Mapping[str, Samples]) -> str:
    return min(samples, key=lambda name: samples[name].estimate().median)


def _ratio(samples: Samples, other: Samples, confidence: float) -> Estimate:
    pairs = [(a[: len(b)], b[: len(a)]) for a, b in zip(samples.ms, other.ms, strict=True)]
    return estimate([np.array(a) / np.array(b) for a, b in pairs], confidence)


def _gate(latency: Estimate, parity: float, allowed: float, budget_ms: float | None) -> Gate:
    outputs = parity_gate(parity, allowed)
    if outputs.verdict != "pass":
        return outputs
    return Gate("latency", *judge(latency, None, budget_ms))


def _advice(standings: Mapping[str, Standing]) -> str:
    """The fastest of those that answer rightly, and what is not told from it."""
    right = {name: one for name, one in standings.items() if one.gate.verdict != "failed-gate"}
    if not right:
        return "take none: all answer otherwise than ONNX Runtime"
    near = [name for name, one in right.items() if one.ratio is None or one.ratio.low <= 1]
    return f"take {' or '.join(near)}" + ("" if len(near) == 1 else ": they cannot be told apart")
