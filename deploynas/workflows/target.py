"""Where latency is predicted and measured: device profiles, and their devices where attached."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from deploynas.check.verdict import measure_bytes
from deploynas.device import Device
from deploynas.errors import IncompleteProfileError
from deploynas.export.exporter import network_bytes
from deploynas.nn import StaticNetwork
from deploynas.profile import DeviceProfile, LatencyModel, profile_space
from deploynas.profile.device_profile import Precision
from deploynas.profile.profiler import quantize_for_timing
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


@dataclass(frozen=True)
class Target:
    """What a network is searched for.

    Attributes:
        profile: Path of the device profile.
        device: The profile's, which measures; None where it is elsewhere.
        precision: Of the latencies.
        others: Further devices whose latency is limited too, by name.
    """

    profile: Path
    device: Device | None = None
    precision: Precision = "fp32"
    others: Mapping[str, Target] = field(default_factory=dict)

    def problem(self, chosen: SearchSpace, budget: Budget, tell: Tell) -> Problem:
        """A space, at the resolutions that the profiles hold, under limits.

        Where the profile holds none whole, what lacks is measured on the device and added to the
        file.

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
