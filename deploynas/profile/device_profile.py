"""The device profile: what a device was measured to do.

Samples are stored, statistics derived. A profile belongs to one device identity; samples of
another are refused.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from deploynas.artifacts import Artifact, Record, unchanged
from deploynas.device import Estimate, Identity, Level, Samples
from deploynas.errors import DeviceMismatchError, IncompleteProfileError
from deploynas.graph.operators import Operator
from deploynas.journal import Journal
from deploynas.spaces import ArchRecord, Layer, Resolution, SearchSpace

Precision = Literal["fp32", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]
Correlation = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=0)]
SpaceKey = Annotated[str, Field(pattern=r"^[^/]+/[^/]+/[0-9]+/[0-9]+$")]
Sessions = tuple[tuple[Positive, ...], ...]


class SampleRecord(Record):
    """Raw samples of one model: a list a session, an entry a touch, milliseconds."""

    model_bytes: Annotated[int, Field(gt=0)]
    ms: Sessions
    core_ms: Sessions
    memory_ms: Sessions

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        touches = [len(session) for session in self.ms]
        if not touches or 0 in touches:
            raise ValueError("a measurement without samples")
        for levels in (self.core_ms, self.memory_ms):
            if [len(session) for session in levels] != touches:
                raise ValueError("ms, core_ms and memory_ms differ in length")
        return self

    @classmethod
    def of(cls, samples: Samples) -> Self:
        """Freeze samples, rounded to a nanosecond."""

        def rounded(sessions: list[list[float]]) -> Sessions:
            return tuple(tuple(round(v, 6) for v in session) for session in sessions)

        return cls(
            model_bytes=samples.model_bytes,
            ms=rounded(samples.ms),
            core_ms=rounded(samples.core_ms),
            memory_ms=rounded(samples.memory_ms),
        )

    def thaw(self) -> Samples:
        """A copy that can grow."""
        columns = ([list(s) for s in c] for c in (self.ms, self.core_ms, self.memory_ms))
        return Samples(self.model_bytes, *columns)


class LayerRecord(Record):
    """A measured layer: samples, and the MACs and params that fvcore counted."""

    macs: Count
    params: Count
    counted_by: str
    samples: SampleRecord


class NetworkRecord(Record):
    """A measured whole network: its architecture in dict form, and samples."""

    architecture: ArchRecord
    samples: SampleRecord

    @field_validator("architecture")
    @classmethod
    def _has_a_resolution(cls, value: ArchRecord) -> ArchRecord:
        if "resolution" not in value:
            raise ValueError("a calibration network without resolution")
        Resolution.of(value["resolution"])
        return value

    @property
    def resolution(self) -> Resolution:
        """Of the input."""
        return Resolution.of(self.architecture["resolution"])


class FragmentRecord(Record):
    """A measured fragment: its operators, how many of each, and samples.

    Attributes:
        is_network: Whether it is a whole network, which errors are judged by.
    """

    is_network: bool
    operators: Annotated[tuple[tuple[Operator, Count], ...], Field(min_length=1)]
    samples: SampleRecord


class SourceRecord(Record):
    """What another device's latency model says of a space's layers.

    Attributes:
        device: Whose, for people.
        terms: Layer key -> what the layer adds to a network's sum, as
            :attr:`deploynas.profile.LatencyModel.layer_terms`.
        intercept: What every network has beside.
        power: Of the sum, which is the time there.
    """

    device: str
    terms: dict[str, float]
    intercept: float
    power: Positive


class TransferRecord(Record):
    """A calibration that rests on other devices: only whole networks were measured here.

    Attributes:
        sources: The other devices.
        layer_ms: Layer key -> milliseconds that the measured networks make of it here.
    """

    sources: Annotated[tuple[SourceRecord, ...], Field(min_length=1)]
    layer_ms: dict[str, float] = {}

    @model_validator(mode="after")
    def _same_layers(self) -> Self:
        if any(source.terms.keys() != self.sources[0].terms.keys() for source in self.sources):
            raise ValueError("sources of different layers")
        return self


class LevelRecord(Record):
    """The reference level that every latency of the profile is normalised to."""

    core_ms: Positive
    memory_ms: Positive


class Validation(Record):
    """Held-out error of the latency model, fractions.

    Attributes:
        num_networks: Networks judged, each by a model that never saw it.
        mape: Mean absolute percentage error.
        within_5_percent: Share of networks.
        kendall_tau: Rank correlation; ``kendall_tau_low``/``high`` its 95 % bootstrap interval.
        residual_95: 95th percentile of the absolute relative error.
        margin: Share of a prediction that its upper bound lies above it; see
            :func:`deploynas.profile.latency_model.conformal_margin`.
        noise_floor: Mean relative half-width of the measurements' own 95 % intervals, without
            what all networks of a session share.
        made: When the last of the networks was measured, in seconds since 1970; None where that is
            not known.
    """

    num_networks: Annotated[int, Field(gt=0)]
    mape: Share
    within_5_percent: Annotated[float, Field(ge=0, le=1)]
    kendall_tau: Correlation
    kendall_tau_low: Correlation
    kendall_tau_high: Correlation
    residual_95: Share
    margin: Share
    noise_floor: Share
    made: Positive | None = None


def _with_margins(document: dict[str, Any]) -> dict[str, Any]:
    """Format 1 kept the residual alone: an error of -r in the prediction is r / (1 - r) of it."""
    validations = document.get("validations", {})
    for validation in validations.values():
        residual = validation["residual_95"]
        validation["margin"] = residual / (1 - residual) if residual < 1 else residual
    return document


class DeviceProfile(Artifact):
    """A device's profile.

    Format 1: first version; 2 (0.1.0): a validation tells the margin of the bound; 3:
    calibrations that rest on other devices; 4: a digest, and fragments, which price operators of
    any network.

    Attributes:
        identity: Whose it is.
        level: The machine's level on the first measurement.
        layers: ``precision/layer key`` -> record.
        networks: ``precision/space name/classes/channels`` -> calibration networks.
        validations: The same keys -> held-out error.
        fragments: Name -> fragment, in the precision fp32.
        operator_validation: Held-out error on those fragments that are whole networks.
        transfers: Of the same keys those that rest on other devices -> on which.
    """

    SCHEMA: ClassVar[str] = "deploynas-device-profile"
    VERSION: ClassVar[int] = 4
    ANEW: ClassVar[str] = "measure it again: deploynas profile"
    MIGRATIONS: ClassVar[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {
        1: _with_margins,
        2: unchanged,
        3: unchanged,
    }

    identity: Identity
    level: LevelRecord | None = None
    layers: dict[str, LayerRecord] = {}
    networks: dict[SpaceKey, Annotated[tuple[NetworkRecord, ...], Field(min_length=1)]] = {}
    validations: dict[SpaceKey, Validation] = {}
    fragments: dict[str, FragmentRecord] = {}
    operator_validation: Validation | None = None
    transfers: dict[SpaceKey, TransferRecord] = {}

    @model_validator(mode="after")
    def _has_a_level(self) -> Self:
        if self.level is None and (self.layers or self.networks or self.fragments):
            raise ValueError("samples without a reference level")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a profile file; see :meth:`Artifact.read` for what is raised."""
        return cls.read(Path(path))

    @cached_property
    def _estimates(self) -> dict[str, Estimate]:
        return {key: self.estimate(record.samples) for key, record in self.layers.items()}

    @property
    def reference(self) -> Level:
        """The level that latencies are normalised to; only where anything was measured."""
        assert self.level is not None
        return Level(self.level.core_ms, self.level.memory_ms)

    def estimate(self, samples: SampleRecord) -> Estimate:
        """A latency at the profile's own reference level."""
        return samples.thaw().estimate(self.reference)

    @cached_property
    def _transferred_ms(self) -> dict[str, float]:
        return {
            f"{key.split('/')[0]}/{layer}": milliseconds
            for key, transfer in self.transfers.items()
            for layer, milliseconds in transfer.layer_ms.items()
        }

    def layer_ms(self, layer: Layer, precision: Precision = "fp32") -> float:
        """Median latency of a layer, milliseconds, or what measured networks make of it.

        Raises:
            KeyError: It is neither measured nor transferred.
        """
        key = layer_key(layer, precision)
        return self._estimates[key].median if key in self.layers else self._transferred_ms[key]

    def sources(self, space: SearchSpace, precision: Precision = "fp32") -> list[str]:
        """The devices that a space's latencies rest on, beside this one."""
        transfer = self.transfers.get(space_key(space, precision))
        return [] if transfer is None else [source.device for source in transfer.sources]

    def basis(self, space: SearchSpace, precision: Precision = "fp32") -> str | None:
        """What a space's latencies rest on where that is other devices, for people."""
        sources, key = self.sources(space, precision), space_key(space, precision)
        if not sources:
            return None
        num = len(self.networks.get(key, ()))
        return f"transferred: {num} networks measured here, layers from {'; '.join(sources)}"

    def unmeasured(self, space: SearchSpace, precision: Precision = "fp32") -> list[Layer]:
        """Layers of ``space`` that were not measured on this device."""
        return [x for x in space.layer_table if layer_key(x, precision) not in self.layers]

    def missing(self, space: SearchSpace, precision: Precision = "fp32") -> list[Layer]:
        """Layers of ``space`` that the profile knows nothing of."""
        transfer = self.transfers.get(space_key(space, precision))
        known = transfer.sources[0].terms if transfer is not None else {}
        return [x for x in self.unmeasured(space, precision) if x.key not in known]

    def restrict(self, space: SearchSpace, precision: Precision = "fp32") -> SearchSpace:
        """``space`` with the resolutions whose every layer is measured.

        Raises:
            IncompleteProfileError: There is none; names a layer and the command that adds it.
        """
        held = []
        lacking: Layer | None = None
        for resolution in space.resolutions:
            missing = self.missing(space.with_resolutions([resolution]), precision)
            if missing:
                lacking = lacking or missing[0]
            else:
                held.append(resolution)
        if not held:
            assert lacking is not None
            raise IncompleteProfileError(
                f"the profile lacks the layer {lacking.key} of {space.name}",
                f"add it: {profile_command(space, self.identity, precision)}",
            )
        return space.with_resolutions(held)

    def require_same_device(self, identity: Identity, path: Path, hint: str) -> None:
        """Refuse to combine or compare samples of two devices.

        Raises:
            DeviceMismatchError: Names the hard fields that differ; ``hint`` is what to do.
        """
        differences = self.identity.differences(identity)
        if differences:
            raise DeviceMismatchError(
                f"{path} was measured on another device ({'; '.join(differences)})", hint
            )


def layer_key(layer: Layer, precision: Precision) -> str:
    """Key of a layer in a profile."""
    return f"{precision}/{layer.key}"


def space_key(space: SearchSpace, precision: Precision) -> str:
    """Key of a space's calibration; its resolutions are pooled."""
    return f"{precision}/{space.key}/{space.num_classes}/{space.in_channels}"


def profile_command(space: SearchSpace, identity: Identity, precision: Precision = "fp32") -> str:
    """The command that adds a space's layers to the profile of a device."""
    how = f" --device {shlex.quote(identity.name)}"
    how += "" if precision == "fp32" else f" --precision {precision}"
    threads = f" --threads {identity.threads}" if identity.threads > 1 else ""
    sides = "".join(f" --resolution {r}" for r in space.resolutions)
    return (
        f"deploynas profile{how}{threads} --space {shlex.quote(space.argument)} "
        f"--num-classes {space.num_classes} --in-channels {space.in_channels}{sides}"
    )


def again_command(
    path: Path, space: SearchSpace, profile: DeviceProfile, precision: Precision = "fp32"
) -> str:
    """The command that makes a profile anew."""
    command = profile_command(space, profile.identity, precision)
    return f"rm {shlex.quote(str(path))} && {command} --output {shlex.quote(str(path))}"


def profile_at(path: Path, identity: Identity) -> DeviceProfile:
    """The profile of a device in a file, or a new one where there is no file yet.

    Raises:
        DeviceMismatchError: The file holds samples of another device.
        InvalidInputError: See :meth:`DeviceProfile.read`.
    """
    if not path.exists():
        return DeviceProfile(identity=identity)
    profile = DeviceProfile.read(path)
    profile.require_same_device(identity, path, "choose another file with --output")
    return profile


class JournalHead(Record):
    """The first line of a profile's journal: the hard fields of the identity that measures."""

    identity: dict[str, Any]


class JournalRound(Record):
    """A round of an unfinished profile.

    Attributes:
        first: Whether it is the first of its session.
        bytes: Sizes of the models that it was the first round of.
        touches: Name -> milliseconds, and the two reference levels around them.
    """

    first: bool
    bytes: dict[str, Annotated[int, Field(gt=0)]]
    touches: dict[str, tuple[Positive, Positive, Positive]]


ProfileJournal = Journal[JournalHead | JournalRound]


def open_journal(profile_path: Path) -> ProfileJournal:
    """The rounds of an unfinished profile, beside its file, locked.

    Raises:
        OutputError: It cannot be written, or another process writes this profile.
    """
    path = profile_path.with_name(f"{profile_path.name}.journal")
    return Journal(path, JournalHead | JournalRound, str(profile_path))
