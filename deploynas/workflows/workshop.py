"""Networks that are cut out of a trained one, measured beside it; what was measured is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydantic import Field

from deploynas.artifacts import Record
from deploynas.check.verdict import measure_bytes
from deploynas.device import Device, Estimate, Level, Samples, StopRule, measure
from deploynas.journal import Journal
from deploynas.nn.adapt.files import onnx_bytes
from deploynas.nn.adapt.space import AdaptedSpace
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.timing import estimate
from deploynas.profile.whole_networks import Measured
from deploynas.spaces import Archs
from deploynas.workflows.target import Tell

# As many sessions of each, for they are compared touch by touch.
BESIDE_RULE = StopRule(
    precision=1e-6, min_sessions=6, max_sessions=6, rounds=8, session_seconds=15.0
)


class MeasuredNetwork(Record):
    """A line of ``measured.jsonl``: what a network took on the device.

    Attributes:
        job: Of which weights' networks, on which device.
        architecture: Its row of options.
        value, low, high: Of the original milliseconds an image, of others a share of those.
        level: Of the machine when the original was measured.
    """

    job: str
    architecture: list[int]
    value: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    level: tuple[float, float] | None = None


class Workshop:
    """Makes, measures and keeps networks of a space.

    Args:
        space: Theirs.
        identity: Of the weights.
        device: Measures.
        run: Directory that keeps it.
        tell: How it goes.

    Attributes:
        asked: Architecture -> what it took: of the original milliseconds, else a share of those.
            Of networks that were asked for alone, so that who goes on sees what it saw before.
    """

    def __init__(
        self, space: AdaptedSpace, identity: str, device: Device, run: Path,
        tell: Tell,
    ) -> None:  # fmt: skip
        self.space, self.device, self.tell = space, device, tell
        run.mkdir(parents=True, exist_ok=True)
        self.journal: Journal[MeasuredNetwork] = Journal(
            run / "measured.jsonl", MeasuredNetwork, str(run)
        )
        machine = device.identity.model_dump_json(exclude={"recorded"})
        self._whole = space.largest()[0]
        self._job = f"{identity} {hashlib.sha256(machine.encode()).hexdigest()[:16]}"
        self._level: Level | None = None
        self._known: dict[bytes, Estimate] = {}
        self.asked: dict[bytes, Estimate] = {}
        for one in self.journal.entries:
            if one.job == self._job and len(one.architecture) == len(space.choices):
                key = space.as_rows(one.architecture)[0].tobytes()
                self._level = Level(*one.level) if one.level else self._level
                self._known[key] = Estimate(one.value, one.low, one.high, 0)

    def content(self, arch: Archs) -> bytes:
        """The file of an architecture, its weights as they are."""
        return onnx_bytes(self.space.module(arch), self.space.reading.example)

    def measured(self, archs: Archs) -> list[Estimate]:
        """Networks measured beside the original, or earlier: how much of its time they take.

        Of what a machine does meanwhile most is the same for all that is measured in turn, so
        that a ratio says much more than two times.
        """
        fresh = [a for a in np.unique(archs, axis=0) if a.tobytes() not in self._known]
        fresh = [arch for arch in fresh if arch.tobytes() != self._whole.tobytes()]
        for arch, share in zip(
            fresh, self._shares(map(self.content, fresh), len(fresh)), strict=True
        ):
            self._keep(arch, share)
        self.asked.update((arch.tobytes(), self._known[arch.tobytes()]) for arch in archs)
        return [self._known[arch.tobytes()] for arch in archs]

    def _shares(self, contents: Iterable[bytes], num: int) -> list[Estimate]:
        """Files over the original, in turn; none of none."""
        if not num:
            return []
        with temporary_folder() as folder:
            paths = {"original": folder / "original.onnx"}
            paths["original"].write_bytes(self.content(self._whole))
            for i, content in enumerate(contents):
                self.tell.progress(f"writing {num} networks", i / num)
                paths[str(i)] = folder / f"{i}.onnx"
                paths[str(i)].write_bytes(content)
            title = f"measuring {num} networks beside the original"
            samples = measure(
                self.device, paths, BESIDE_RULE,
                on_progress=lambda p: self.tell.progress(title, p.done),
            )  # fmt: skip
        own = samples.pop("original")
        return [beside(one, own) for one in samples.values()]

    def took_file(self, content: bytes) -> Estimate:
        """Milliseconds of a file, by its share of the original's."""
        (share,) = self._shares([content], 1)
        return share.scaled(self.original.median)

    @property
    def level(self) -> Level:
        """Of the machine when the original was measured."""
        assert self._level is not None
        return self._level

    @property
    def original(self) -> Estimate:
        """What the original takes, milliseconds: once, for all that is beside it."""
        if self._whole.tobytes() not in self._known:
            samples = measure_bytes(self.device, self.content(self._whole))
            self._level = samples.level
            self._keep(self._whole, samples.estimate())
        self.asked[self._whole.tobytes()] = self._known[self._whole.tobytes()]
        return self._known[self._whole.tobytes()]

    def took(self, arch: Archs) -> Estimate:
        """Milliseconds of a network, by its share of the original's."""
        if arch.tobytes() == self._whole.tobytes():
            return self.original
        (share,) = self.measured(arch[None])
        return share.scaled(self.original.median)

    def _keep(self, arch: Archs, took: Estimate) -> None:
        self._known[arch.tobytes()] = took
        level = self._level if arch.tobytes() == self._whole.tobytes() else None
        self.journal.append(
            MeasuredNetwork(
                job=self._job,
                architecture=[int(i) for i in arch],
                value=took.median,
                low=took.low,
                high=took.high,
                level=None if level is None else (level.core_ms, level.memory_ms),
            )  # fmt: skip
        )

    def all_measured(self) -> Measured:
        """Whatever was asked for."""
        archs = self.space.as_rows(
            np.stack([np.frombuffer(key, self.space.row_type) for key in self.asked])
        )
        took = [self.took(arch) for arch in archs]
        own = [0.0 if a.tobytes() == self._whole.tobytes() else t.half_width / 2
               for a, t in zip(archs, took, strict=True)]  # fmt: skip
        return Measured(archs, np.array([one.median for one in took]), np.array(own))


def beside(one: Samples, other: Samples) -> Estimate:
    """One model over another, touch by touch of the same round."""
    pairs = zip(one.ms, other.ms, strict=True)
    return estimate([np.array(a) / np.array(b) for a, b in pairs])
