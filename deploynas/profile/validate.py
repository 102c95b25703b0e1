"""Predictions against measurements of networks that the latency model has never seen.

What two references cannot follow of a machine's drift is taken out by *anchors*: some of the
networks that calibrated the profile, measured again beside the fresh ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deploynas import spaces
from deploynas.device import Device, Estimate, StopRule, measure
from deploynas.errors import IncompleteProfileError
from deploynas.onboard.folders import temporary_folder
from deploynas.profile.device_profile import (
    PRECISIONS,
    DeviceProfile,
    Precision,
    Validation,
    space_key,
)
from deploynas.profile.latency_model import Bound, LatencyModel, judge
from deploynas.profile.profiler import write_timed
from deploynas.profile.refresh import anchors
from deploynas.spaces import Archs, SearchSpace

Floats = npt.NDArray[np.float64]
RULE = StopRule(
    precision=0.005,
    min_sessions=6,
    max_sessions=24,
    rounds=8,
    session_seconds=15.0,
    soft_seconds=150.0,
)
SEED = 20_001  # calibration draws with others


@dataclass(frozen=True)
class Judgement:
    """What :func:`validate` measured.

    Attributes:
        archs: ``(n, num_choices)``.
        predicted_ms: ``(n,)`` by the latency model; ``sum_ms`` by adding up layers.
        measured: One estimate a network, at the profile's reference level.
        half_width: What the model states as its fit's error, relative: its level is taken out.
        drift: How much slower than in the profile the anchors are now, relative; taken out of
            ``measured``.
    """

    archs: Archs
    predicted_ms: Floats
    sum_ms: Floats
    measured: list[Estimate]
    half_width: float
    drift: float = 0.0

    @property
    def measured_ms(self) -> Floats:
        """``(n,)`` medians."""
        return np.array([e.median for e in self.measured])

    @property
    def errors(self) -> Floats:
        """``(n,)`` relative errors of the predictions, signed."""
        errors: Floats = self.predicted_ms / self.measured_ms - 1
        return errors

    @property
    def table(self) -> Validation:
        """The error table."""
        noise = [e.half_width for e in self.measured]
        return judge(self.predicted_ms, self.measured_ms, noise)

    @property
    def sum_mape(self) -> float:
        """Mean absolute error of the plain sum of layers."""
        return float(np.abs(self.sum_ms / self.measured_ms - 1).mean())

    @property
    def bias(self) -> float:
        """Mean signed error: negative where networks are slower than predicted."""
        return float(self.errors.mean())

    @property
    def worst(self) -> float:
        """Largest absolute error."""
        return float(np.abs(self.errors).max())

    @property
    def num_unstable(self) -> int:
        """Networks whose samples do not say much."""
        return sum(e.unstable for e in self.measured)


def profiled_spaces(
    profile: DeviceProfile, precision: Precision = "fp32", own: str | None = None
) -> list[SearchSpace]:
    """The spaces that a profile was calibrated for, at the resolutions that it holds.

    Args:
        profile: Holds them by name; of a table of one's own the name says no more than which.
        precision: Of the calibration.
        own: Such a table's file, where it may be among them.
    """
    own_key = spaces.space(own).key if own is not None else None
    found = []
    for key, records in profile.networks.items():
        kind, name, num_classes, in_channels = key.split("/")
        argument = own if name == own_key else name
        if kind == precision and argument is not None and spaces.is_known(argument):
            resolutions = [r.resolution for r in records]
            found.append(spaces.space(argument, int(num_classes), int(in_channels), resolutions))
    return found


def bounds_of(profile: DeviceProfile) -> dict[str, Bound]:
    """Key of a space that is known -> what the bound of its predictions is made of."""
    found = {}
    for precision in PRECISIONS:
        for space in profiled_spaces(profile, precision):
            with contextlib.suppress(IncompleteProfileError):
                bound = LatencyModel(space, profile, precision).bound
                found[space_key(space, precision)] = bound
    return found


def fresh_archs(
    space: SearchSpace,
    profile: DeviceProfile,
    num: int,
    seed: int = SEED,
    precision: Precision = "fp32",
) -> Archs:
    """``num`` random architectures, none of which calibrated ``profile``."""
    records = profile.networks.get(space_key(space, precision), ())
    held = [r.architecture for r in records if r.resolution in space.resolutions]
    known = {row.tobytes() for row in space.encode(held)}
    drawn = space.sample(num + 8 * len(known), np.random.default_rng(seed))
    fresh: Archs = drawn[[row.tobytes() not in known for row in drawn]][:num]
    return fresh


def validate(
    model: LatencyModel,
    profile: DeviceProfile,
    device: Device,
    archs: Archs,
    *,
    rule: StopRule = RULE,
    seed: int = SEED,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> Judgement:
    """Measure ``archs`` now and compare with what the model predicts.

    Args:
        model: Predicts, at the profile's level.
        profile: The model's; its reference level is what measurements are normalised to.
        device: Must be the one that made the profile.
        archs: ``(n, num_choices)``, none of which calibrated the model.
        rule: Precision of the measurement.
        seed: Of the order of touching.
        on_progress: Called with what is going on and its share done.

    Raises:
        DeviceMismatchError: ``device`` is another one.
        DeviceError: It failed; see its class.
    """
    return validate_together(
        {model: profile}, device, archs, rule=rule, seed=seed, on_progress=on_progress
    )[0]


def validate_together(
    models: Mapping[LatencyModel, DeviceProfile],
    device: Device,
    archs: Archs,
    *,
    rule: StopRule = RULE,
    seed: int = SEED,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> list[Judgement]:
    """The same of several models of one space, by the same measurements: one for each."""
    for profile in models.values():
        profile.require_same_device(
            device.identity, Path("the profile"), "validate it on the device that made it"
        )
    with temporary_folder() as folder:
        paths = {}
        again = {model: anchors(model) for model in models}
        known = {
            model: model.space.encode([record.architecture for record in records])
            for model, records in again.items()
        }
        first = next(iter(models))
        for i, arch in enumerate([*archs, *np.concatenate(list(known.values()))]):
            path = folder / f"{i}.onnx"
            paths[str(i)] = write_timed(path, first.space.layers(arch), first.precision, i)
        samples = measure(
            device, paths, rule, seed=seed,
            on_progress=lambda p: on_progress(f"{len(archs)} networks", p.done),
        )  # fmt: skip
    found, start = [], len(archs)
    for model, profile in models.items():
        end = start + len(again[model])
        then = np.array([profile.estimate(record.samples).median for record in again[model]])
        estimates = [samples[name].estimate(profile.reference) for name in paths]
        now = np.array([e.median for e in estimates[start:end]])
        drift, start = float(np.median(now / then)) - 1, end
        layer_ms = np.array(
            [profile.layer_ms(x, model.precision) for x in model.space.layer_table]
        )
        found.append(
            Judgement(
                archs=archs,
                predicted_ms=model.predict_ms(archs) / model.drift.factor,
                sum_ms=model.space.sum_over_layers(archs, layer_ms),
                measured=[e.scaled(1 / (1 + drift)) for e in estimates[: len(archs)]],
                half_width=model.validation.margin,
                drift=drift,
            )
        )
    return found
