"""Several devices of one kind that share the measuring of many models."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploynas.device.base import Device, Identity, Notes
from deploynas.errors import DeviceError, DeviceMismatchError, ModelError
from deploynas.onboard.conversation import Examination
from deploynas.onboard.life import Life, LifeRule
from deploynas.onboard.runtime import Array, Feeds
from deploynas.onboard.timing import Round, Samples, StopRule

DROPS = (DeviceError, DeviceMismatchError)  # a member's own trouble; but see ModelError
NUM_ANCHORS = 4  # models that every device measures, to compare them
END_SECONDS = 1.0  # that the members may take to end the round in hand


class Fleet:
    """Devices of one kind as one.

    Args:
        members: Name -> device.

    Raises:
        DeviceMismatchError: They are not of one kind.
    """

    def __init__(self, members: Mapping[str, Device]) -> None:
        self._members = dict(members)
        self._own = Notes()
        # member -> model, of which measurement -> milliseconds
        self._anchors: dict[str, dict[tuple[int, str], float]] = {name: {} for name in members}
        self._num_measurements = 0
        identities = {}
        for name, device in members.items():
            try:
                identities[name] = device.identity
            except DeviceError as error:
                self._drop(name, error)
        if not identities:
            raise DeviceError("no device of the fleet answers: " + "; ".join(self._own))
        first, *others = identities
        for name in others:
            if differences := identities[first].differences(identities[name]):
                raise DeviceMismatchError(
                    f"{first} and {name} are not of one kind: {'; '.join(differences)}",
                    "profile them apart",
                )

    def _drop(self, name: str, error: Exception) -> None:
        del self._members[name]
        self._own.add(f"dropped {name}", f"{name} dropped out: {error}")

    @property
    def identity(self) -> Identity:
        """That of all: their hard fields are equal."""
        return next(iter(self._members.values())).identity

    @property
    def notes(self) -> Notes:
        """How far the devices agree, who dropped out, and what each has to say."""
        for name, device in self._members.items():
            for line in device.notes:
                self._own.add(f"{name} {line}", f"{name}: {line}")
        if apart := self.disagreement:
            text = ", ".join(f"{name} {share:+.1%}" for name, share in apart.items())
            self._own.add("agreement", f"on the same models, against their median: {text}")
        return self._own

    @property
    def disagreement(self) -> dict[str, float]:
        """Name -> how much slower than the fleet's median it measured the same models.

        Empty before anything was measured by two of them.
        """
        times = {name: found for name, found in self._anchors.items() if found}
        if len(times) < 2:
            return {}
        shared = set.intersection(*(set(found) for found in times.values()))
        if not shared:
            return {}
        table = {
            name: np.array([found[m] for m in sorted(shared)]) for name, found in times.items()
        }
        centre = np.median(list(table.values()), axis=0)
        return {name: float(np.median(ms / centre)) - 1 for name, ms in table.items()}

    def examine(self, model: Path, session: int = 0) -> Examination:
        """Of the first member; see :class:`deploynas.device.base.Device`."""
        return next(iter(self._members.values())).examine(model, session)

    def lives(self, model: Path, rule: LifeRule) -> Iterator[Life]:
        """Of the first member; see :class:`deploynas.device.base.Device`."""
        return next(iter(self._members.values())).lives(model, rule)

    def answers(self, model: Path, feeds: Sequence[Feeds]) -> list[list[Array]]:
        """Of the first member; see :class:`deploynas.device.base.Device`."""
        return next(iter(self._members.values())).answers(model, feeds)

    def rounds(
        self, models: Mapping[str, Path], rule: StopRule, samples: dict[str, Samples], seed: int
    ) -> Generator[Round, None, None]:
        """See :class:`deploynas.device.base.Device`.

        A few models are measured by every member, the others by one each; what a member that
        drops out leaves, the others do.

        Raises:
            DeviceError: No device is left.
            ModelError: One of them cannot run a model.
        """
        names = list(models)
        self._num_measurements += 1
        compare = names[:: math.ceil(len(names) / NUM_ANCHORS)]
        pending = [name for name in names if name not in compare]
        while pending or compare:
            runs = []
            for i, (member, device) in enumerate(self._members.items()):
                own = {name: samples[name] for name in pending[i :: len(self._members)]}
                for name in compare:
                    own[name] = Samples(samples[name].model_bytes) if i else samples[name]
                runs.append(_Run(member, device, own))
            yield from _merged([run for run in runs if run.samples], models, rule, samples, seed)
            failed = [run for run in runs if run.error]
            for run in runs:
                mine = isinstance(run.error, DROPS) and not isinstance(run.error, ModelError)
                if run.error is not None and not mine:
                    raise run.error
                if run.error is None:
                    for name in compare:
                        ms = run.samples[name].estimate().median
                        self._anchors[run.name][self._num_measurements, name] = ms
            again = {name for run in failed for name in run.samples}
            pending = [name for name in pending if name in again]
            compare = compare if runs[0].error else []
            if len(failed) == len(self._members):
                raise DeviceError(f"no device of the fleet is left; the last: {failed[-1].error}")
            for run in failed:
                self._drop(run.name, run.error or DeviceError("?"))


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
    error: Exception | None = None


def _merged(
    runs: Sequence[_Run], models: Mapping[str, Path], rule: StopRule,
    samples: Mapping[str, Samples], seed: int,
) -> Generator[Round, None, None]:  # fmt: skip
    """Rounds of all as they come, of what fills ``samples``; share done: the slowest one's.

    Where nobody wants more, each member ends after the round in hand.
    """
    out: queue.Queue[tuple[_Run, Round | None]] = queue.Queue()
    enough = threading.Event()

    def work(run: _Run) -> None:
        part = {name: models[name] for name in run.samples}
        try:
            with contextlib.closing(run.device.rounds(part, rule, run.samples, seed)) as rounds:
                for one in rounds:
                    out.put((run, one))
                    if enough.is_set():
                        break
        except Exception as error:  # raised where it is waited for
            run.error = error
        finally:
            out.put((run, None))

    threads = [threading.Thread(target=work, args=(run,), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    left = len(runs)
    try:
        while left:
            run, one = out.get()
            if one is None:
                run.done = 1.0
                left -= 1
                continue
            run.done = one.done
            kept = {n: t for n, t in one.touches.items() if run.samples[n] is samples[n]}
            yield Round(one.number, kept, min(run.done for run in runs), one.others)
    finally:
        enough.set()
        deadline = time.monotonic() + END_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
