"""A profile of a device that only a person can reach: a file to run there, a file to read here."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deploynas
from deploynas import spaces
from deploynas.artifacts import open_atomic
from deploynas.device.base import Identity, Notes
from deploynas.device.link import package
from deploynas.device.local import converted
from deploynas.device.reference import write_references
from deploynas.device.remote import round_of
from deploynas.device.wire import Parcel
from deploynas.errors import (
    DeploynasError,
    DeviceError,
    DeviceMismatchError,
    InvalidInputError,
    MissingFileError,
)
from deploynas.onboard.conversation import Examination
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.life import Life, LifeRule
from deploynas.onboard.runtime import Array, Feeds
from deploynas.onboard.timing import Round, Samples, StopRule
from deploynas.profile.device_profile import DeviceProfile, Precision
from deploynas.profile.profiler import jobs_of, write_models
from deploynas.runtimes import DEFAULT, that_travels
from deploynas.spaces import SearchSpace

_MAIN = """
import sys
if sys.version_info < (3, 9):
    sys.exit("error: this Python is %d.%d, and 3.9 is needed" % sys.version_info[:2])
try:
    import numpy
except ImportError:
    sys.exit("error: this Python has no numpy; try: pip install numpy PACKAGE")
import tempfile, zipfile
from pathlib import Path
bundle = Path(sys.argv[0])
with tempfile.TemporaryDirectory(prefix="deploynas-") as folder:
    try:
        zipfile.ZipFile(bundle).extractall(folder)
    except Exception as error:
        sys.exit("error: cannot unpack %s to %s: %s" % (bundle, folder, error))
    sys.path[0] = folder  # the worker is a process of its own, which reads no archive
    from deploynas.onboard.offline import main
    default = Path(bundle.stem + ".results.jsonl")
    main(Path(folder), Path(sys.argv[1]) if sys.argv[1:] else default)
"""


@dataclass(frozen=True)
class OnDevice:
    """What measures there.

    Attributes:
        runtime: By name.
        threads: Threads inside one operator.
        provider: What executes; None for the runtime's first.
    """

    runtime: str = DEFAULT
    threads: int = 1
    provider: str | None = None


def write_bundle(
    path: Path,
    space: SearchSpace,
    *,
    precision: Precision = "fp32",
    device: OnDevice = OnDevice(),  # noqa: B008 - frozen
    budget_minutes: float = math.inf,
    soft_seconds: float = 100.0,
) -> tuple[int, int]:
    """Write what ``python3 PATH`` on the device profiles ``space`` with.

    Returns:
        Numbers of models and of bytes.

    Raises:
        OutputError: The file cannot be written.
    """
    plan, literals = _plan(space, precision, device, budget_minutes, soft_seconds)
    runtime = that_travels(device.runtime)
    text = json.dumps(plan).encode()
    files = {
        "__main__.py": _MAIN.replace("PACKAGE", runtime.package).encode(),
        "plan.json": text,
        "plan.sha256": hashlib.sha256(text).hexdigest().encode(),
        **{f"models/{digest}": content for digest, content in literals.items()},
    }
    content = package(runtime, files)
    with open_atomic(path) as out:
        out.write(content)
    return sum(len(job["models"]) for job in plan["jobs"]), len(content)


def read_results(path: Path) -> tuple[SearchSpace, Precision, RecordedDevice]:
    """What ``python3 BUNDLE`` wrote on the device.

    Returns:
        The space, its precision, and a device that measures it by looking it up.

    Raises:
        MissingFileError, InvalidInputError: The file is not there, unfinished, damaged or edited,
            or of another version's bundle.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist", "it is what the bundle wrote there")
    content = path.read_bytes()
    damaged = InvalidInputError(
        f"{path} is not what a bundle wrote, or was cut or edited", "copy it from the device again"
    )
    try:
        lines = [json.loads(line) for line in content.splitlines()]
        first, last = lines[0], lines[-1]
        plan, spec, facts = first["plan"], first["space"], first["identity"]
        precision: Precision = first["precision"]
        device = OnDevice(first["runtime"], first["threads"], first["provider"])
        limits = first["budget_minutes"], first["soft_seconds"]
        space, is_finished = spaces.recorded_space(spec), "end" in last
    except (ValueError, IndexError, KeyError, TypeError, DeploynasError):
        raise damaged from None
    if not is_finished:
        raise InvalidInputError(
            f"{path} is not finished", "run the bundle again on the device: it goes on"
        )
    before = content[: content.rstrip(b"\n").rfind(b"\n") + 1]
    if last["end"] != hashlib.sha256(before).hexdigest():
        raise damaged

    expected, _ = _plan(space, precision, device, *limits)
    if hashlib.sha256(json.dumps(expected).encode()).hexdigest() != plan:
        raise InvalidInputError(
            f"{path} was measured with a bundle of another version, or with changed models",
            "write a new bundle: deploynas profile --bundle FILE",
        )
    names = [name for job in expected["jobs"] for name in job["models"]]
    try:
        rounds = [round_of(line["round"], names) for line in lines[1:-1]]
        (kind, *_) = that_travels(device.runtime).devices
        identity = Identity.of(kind, facts)
    except (KeyError, TypeError, DeviceError):
        raise damaged from None
    return space, precision, RecordedDevice(identity, rounds)


class RecordedDevice:
    """A device that has measured already.

    Args:
        identity: Who measured.
        rounds: What.
    """

    def __init__(self, identity: Identity, rounds: list[Round]) -> None:
        self.identity = identity
        self.notes = Notes()
        self._rounds = rounds

    def examine(self, model: Path, session: int = 0) -> Examination:
        """It was not asked for."""
        raise InvalidInputError("results of a bundle hold nothing but latencies")

    def lives(self, model: Path, rule: LifeRule) -> Iterator[Life]:
        """It was not asked for."""
        raise InvalidInputError("results of a bundle hold nothing but latencies")

    def answers(self, model: Path, feeds: Sequence[Feeds]) -> list[list[Array]]:
        """It was not asked for."""
        raise InvalidInputError("results of a bundle hold nothing but latencies")

    def rounds(
        self, models: Mapping[str, Path], rule: StopRule, samples: dict[str, Samples], seed: int
    ) -> Generator[Round, None, None]:
        """The recorded rounds of ``models``.

        Raises:
            DeviceMismatchError: One of them was never measured.
        """
        for name in models:  # what an interrupted import left is here as well
            samples[name].clear()
        for i, one in enumerate(self._rounds):
            touches = {name: touch for name, touch in one.touches.items() if name in models}
            if not touches:
                continue
            for name, (ms, level) in touches.items():
                samples[name].add(one.number == 0, ms, level)
            yield Round(one.number, touches, (i + 1) / len(self._rounds), one.others)
        if lacking := [name for name in models if not samples[name].ms]:
            raise DeviceMismatchError(
                f"the results lack {lacking[0]}", "run the bundle again on the device: it goes on"
            )


def _plan(
    space: SearchSpace,
    precision: Precision,
    device: OnDevice,
    budget_minutes: float,
    soft_seconds: float,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The plan, and digest -> bytes of each model that are sent."""
    literals: dict[str, bytes] = {}
    sent: dict[str, Any] = {}

    runtime = that_travels(device.runtime)

    def put(path: Path) -> str:
        (ready,) = converted(runtime, {path.stem: path}, path.parent).values()
        parcel = Parcel.of(runtime.files(ready), path)
        literals[parcel.digest] = parcel.literal
        sent[parcel.digest] = parcel.files, parcel.parts
        return parcel.digest

    jobs = []
    with temporary_folder() as folder:
        references = [put(path) for path in write_references(folder)]
        empty = DeviceProfile.model_construct(layers={}, networks={})
        for job in jobs_of(space, empty, precision, budget_minutes, soft_seconds):
            paths = write_models(job, folder)
            jobs.append(
                {
                    "title": job.title,
                    "models": {name: put(path) for name, path in paths.items()},
                    "bytes": {name: path.stat().st_size for name, path in paths.items()},
                    "rule": asdict(job.rule),
                }
            )
    plan = {
        "version": deploynas.__version__, "space": space.spec, "precision": precision,
        **asdict(device), "budget_minutes": budget_minutes, "soft_seconds": soft_seconds,
        "jobs": jobs, "references": references, "models": sent,
    }  # fmt: skip
    return plan, literals
