"""Where latency is predicted and measured: device profiles, and their devices where attached."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from deploynas.artifacts import Artifact, exists
from deploynas.check.verdict import measure_bytes
from deploynas.device import Device, Drift
from deploynas.errors import IncompleteProfileError
from deploynas.export.exporter import network_bytes
from deploynas.nn import StaticNetwork
from deploynas.profile import DeviceProfile, LatencyModel, profile_space
from deploynas.profile.device_profile import Precision, again_command
from deploynas.profile.profiler import quantize_for_timing
from deploynas.profile.refresh import refresh
from deploynas.profile.shipped import is_shipped
from deploynas.search import Budget, Problem
from deploynas.search.descent import Measure
from deploynas.spaces import Archs, SearchSpace

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Tell:
    """Whom to tell how it goes.

    Attributes:
        progress: Called with what is going on and its share done.
        note: Called with what a user should know.
    """

    progress: OnProgress = lambda text, share: None
    note: Callable[[str], None] = lambda text: None


class Drifts(Artifact):
    """``drift.json`` of a run that is not finished: what goes on later believes the same.

    Format 1 (0.1.0): first version.

    Attributes:
        job: What they are believed for.
        drifts: A device's name, empty for the first -> its machine's drift.
    """

    SCHEMA: ClassVar[str] = "deploynas-drift"
    VERSION: ClassVar[int] = 1

    job: str
    drifts: dict[str, Drift]

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "drift.json"

    @classmethod
    def kept_in(cls, run: Path, job: str | None) -> Drifts | None:
        """Those of a run that was stopped; None where there are none for this job.

        Args:
            run: Directory.
            job: None for a process that only follows another, which has said them.
        """
        path = cls.file_in(run)
        kept = cls.read(path) if exists(path) else None
        return kept if kept is not None and job in (None, kept.job) else None

    @classmethod
    def of(cls, problem: Problem, job: str) -> Drifts:
        """What a problem's latencies rest on."""
        models = {"": problem.model, **(problem.others or {})}
        return cls(job=job, drifts={name: model.drift for name, model in models.items()})


@dataclass(frozen=True)
class Target:
    """What a network is searched for.

    Attributes:
        profile: Path of the device profile.
        device: The profile's, which measures; None where it is elsewhere.
        precision: Of the latencies.
        others: Further devices whose latency is limited too, by name.
        refreshes: Whether a few of the profile's networks are measured again where the device is
            attached, so that latencies are those of the machine as it is now.
    """

    profile: Path
    device: Device | None = None
    precision: Precision = "fp32"
    others: Mapping[str, Target] = field(default_factory=dict)
    refreshes: bool = True

    def problem(self, chosen: SearchSpace, budget: Budget, tell: Tell) -> Problem:
        """A space, at the resolutions that the profiles hold, under limits.

        Where the profile holds none whole, what lacks is measured on the device and added to the
        file. What machines drifted since is left to :meth:`refreshed`.

        Raises:
            IncompleteProfileError: Something lacks and the profile's device is elsewhere, or the
                profile ships with the package and is only read.
        """
        model = self._model(chosen, tell)
        for other in self.others.values():
            model = self._model(other._model(model.space, tell).space, tell)
        others = {name: other._model(model.space, tell) for name, other in self.others.items()}
        for one in (model, *others.values()):
            if basis := one.profile.basis(one.space, one.precision):
                tell.note(f"latencies on {one.profile.identity.name} are {basis}")
        if model.space.resolutions != chosen.resolutions:
            held = ", ".join(map(str, model.space.resolutions))
            tell.note(
                f"searching at {held} px: the profile holds no other resolution of the space"
            )
        return Problem(model, budget, others)

    def _model(self, chosen: SearchSpace, tell: Tell) -> LatencyModel:
        profile = DeviceProfile.read(self.profile)
        try:
            restricted = profile.restrict(chosen, self.precision)
            return LatencyModel(restricted, profile, self.precision)
        except IncompleteProfileError:
            if self.device is None or is_shipped(self.profile):
                raise
        profile, _ = profile_space(
            chosen, self.device, self.profile, precision=self.precision, on_progress=tell.progress
        )
        return LatencyModel(chosen, profile, self.precision)

    def refreshed(self, problem: Problem, tell: Tell, kept: Drifts | None = None) -> Problem:
        """A problem of this target on its machines as they are now, where they can be measured.

        Args:
            problem: As :meth:`problem` makes it.
            tell: How it goes.
            kept: Of a run that goes on: machines are believed to be as they were then.

        Raises:
            DeviceError: One failed; see its class.
        """
        drifts = {} if kept is None else kept.drifts
        others = {
            name: self.others[name]._at_now(model, name, drifts.get(name), tell)
            for name, model in (problem.others or {}).items()
        }
        model = self._at_now(problem.model, "", drifts.get(""), tell)
        return replace(problem, model=model, others=others)

    def _at_now(
        self, model: LatencyModel, name: str, drift: Drift | None, tell: Tell
    ) -> LatencyModel:
        if drift is None and self.refreshes and self.device is not None:
            drift = refresh(model, self.device, on_progress=tell.progress)
        model = model if drift is None else model.at(drift)
        tell.note(f"{name}: {model.drift.words}" if name else model.drift.words)
        if model.drift.exceeds(model.validation.margin):
            command = again_command(self.profile, model.space, model.profile, self.precision)
            tell.note(f"that is more than a machine drifts: profile it again, {command}")
        return model

    def detached(self) -> Target:
        """The same, where nothing is measured."""
        others = {name: other.detached() for name, other in self.others.items()}
        return replace(self, device=None, others=others)

    @property
    def is_attached(self) -> bool:
        """Whether any device measures."""
        return self.device is not None or any(o.is_attached for o in self.others.values())

    def measure(
        self, extract: Callable[[Archs], StaticNetwork], limited: Collection[str]
    ) -> Measure | None:
        """Measures an architecture on the devices that are attached; None where none is.

        Args:
            extract: Architecture -> its network.
            limited: Costs; the latency of other devices is not measured.
        """
        devices = {name: (one.device, one.precision) for name, one in self._by_cost().items()}
        attached = {
            name: pair for name, pair in devices.items() if pair[0] is not None and name in limited
        }
        if not attached:
            return None

        def measure(arch: Archs) -> dict[str, float]:
            network = extract(arch)
            found = {}
            for name, (device, precision) in attached.items():
                assert device is not None
                content = network_bytes(network)
                if precision == "int8":
                    content = quantize_for_timing(content, network.nodes[0].layer)
                found[name] = measure_bytes(device, content).estimate().high
            return found

        return measure

    def _by_cost(self) -> dict[str, Target]:
        """The latency that each device measures -> its target."""
        others = {f"{name}.latency_ms": other for name, other in self.others.items()}
        return {"latency_ms": self, **others}
