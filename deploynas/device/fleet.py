"""Several devices of one kind that share the measuring of many models."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploynas.device.base import Device, Identity
from deploynas.errors import DeviceError, DeviceMismatchError, ModelError
from deploynas.onboard.conversation import Examination
from deploynas.onboard.timing import Round, Samples, StopRule

NUM_ANCHORS = 4  # models that every device measures, to compare them


class Fleet:
    """Devices of one kind as one.

    Args:
        members: Name -> device.

    Raises:
        DeviceMismatchError: They are not of one kind.
    """

    def __init__(self, members: Mapping[str, Device]) -> None:
        self._members = dict(members)
        self._notes: list[str] = []
        self._anchors: dict[str, list[float]] = {name: [] for name in members}
        first, *others = self._members.items()
        for name, device in others:
            if differences := first[1].identity.differences(device.identity):
                raise DeviceMismatchError(
                    f"{first[0]} and {name} are not of one kind: {'; '.join(differences)}",
                    "profile them apart",
                )

    @property
    def identity(self) -> Identity:
        """That of all: their hard fields are equal."""
        return next(iter(self._members.values())).identity

    @property
    def notes(self) -> list[str]:
        """How far the devices agree, who dropped out, and what each has to say."""
        own = [f"{name}: {n}" for name, d in self._members.items() for n in d.notes]
        return [*self._notes, *([text] if (text := self._agreement()) else []), *own]

    @property
    def disagreement(self) -> dict[str, float]:
        """Name -> how much slower than the fleet's median it measured the same models.

        Empty before anything was measured by two of them.
        """
        times = {name: np.array(ms) for name, ms in self._anchors.items() if ms}
        if len(times) < 2:
            return {}
        centre = np.median(list(times.values()), axis=0)
        return {name: float(np.median(ms / centre)) - 1 for name, ms in times.items()}

    def examine(self, model: Path) -> Examination:
        """Of the first member; see :class:`deploynas.device.base.Device`."""
        return next(iter(self._members.values())).examine(model)

    def _agreement(self) -> str:
        apart = self.disagreement
        if not apart:
            return ""
        text = ", ".join(f"{name} {share:+.1%}" for name, share in apart.items())
        return f"on the same models, against their median: {text}"

    def rounds(
        self, models: Mapping[str, Path], rule: StopRule, samples: dict[str, Samples], seed: int
    ) -> Iterator[Round]:
        """See :class:`deploynas.device.base.Device`.

        A few models are measured by every member, the others by one each; what a member that
        drops out leaves, the others do.

        Raises:
            DeviceError: No device is left.
            ModelError: One of them cannot run a model.
        """
        names = list(models)
        compare = names[:: math.ceil(len(names) / NUM_ANCHORS)]
        pending = [name for name in names if name not in compare]
        alive = list(self._members)
        while pending or compare:
            runs = []
            for i, member in enumerate(alive):
                own = {name: samples[name] for name in pending[i :: len(alive)]}
                for name in compare:
                    own[name] = Samples(samples[name].model_bytes) if i else samples[name]
                runs.append(_Run(member, self._members[member], own))
            yield from _merged([run for run in runs if run.samples], models, rule, samples, seed)
            failed = [run for run in runs if run.error]
            for run in runs:
                if isinstance(run.error, ModelError):
                    raise run.error
                if run.error is None:
                    own = run.samples
                    self._anchors[run.name] += [own[n].estimate().median for n in compare]
            again = {name for run in failed for name in run.samples}
            pending = [name for name in pending if name in again]
            compare = compare if runs[0].error else []
            for run in failed:
                alive.remove(run.name)
                self._notes.append(f"{run.name} dropped out: {run.error}")
            if not alive:
                raise DeviceError(f"no device of the fleet is left; the last: {failed[-1].error}")


@dataclass
class _Run:
    """One member at work, in a thread of its own.

    Attributes:
        samples: What it measures, filled in place.
        done: Share of that.
        error: Why it ended early, if it did.
    """

    name: str
    device: Device
    samples: dict[str, Samples]
    done: float = 0.0
    error: DeviceError | None = None


def _merged(
    runs: Sequence[_Run], models: Mapping[str, Path], rule: StopRule,
    samples: Mapping[str, Samples], seed: int,
) -> Iterator[Round]:  # fmt: skip
    """Rounds of all as they come, of what fills ``samples``; share done: the slowest one's."""
    out: queue.Queue[tuple[_Run, Round | None]] = queue.Queue()

    def work(run: _Run) -> None:
        part = {name: models[name] for name in run.samples}
        try:
            for one in run.device.rounds(part, rule, run.samples, seed):
                out.put((run, one))
        except DeviceError as error:
            run.error = error
        out.put((run, None))

    for run in runs:
        threading.Thread(target=work, args=(run,), daemon=True).start()
    left = len(runs)
    while left:
        run, one = out.get()
        if one is None:
            run.done = 1.0
            left -= 1
            continue
        run.done = one.done
        kept = {n: t for n, t in one.touches.items() if run.samples[n] is samples[n]}
        yield Round(one.number, kept, min(run.done for run in runs), one.others)
