"""The profiler: fills a device profile with what a space needs, and only that."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from deploynas.device import Device, Level, Samples, StopRule, measure
from deploynas.errors import DeviceMismatchError
from deploynas.graph import RandomWeights, write_model
from deploynas.graph.quantize import quantize
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.timing import typical_level
from deploynas.profile.device_profile import (
    DeviceProfile,
    JournalHead,
    JournalRound,
    LayerRecord,
    LevelRecord,
    NetworkRecord,
    Precision,
    ProfileJournal,
    SampleRecord,
    layer_key,
    open_journal,
    profile_at,
    space_key,
)
from deploynas.profile.latency_model import cross_validate, judge
from deploynas.profile.levels import own_half_widths
from deploynas.profile.transfer import features_of
from deploynas.spaces import Archs, Layer, SearchSpace
from deploynas.spaces import layers as layer_costs
from deploynas.spaces.layers import Node, chain

OnProgress = Callable[[str, float], None]
NUM_CALIBRATION = 48
NUM_NOISE = 2  # images that a network for timing is quantized with
LAYER_RULE = StopRule(
    precision=0.01, min_sessions=4, max_sessions=16, rounds=10, session_seconds=6.0
)
NETWORK_RULE = StopRule(
    precision=0.01, min_sessions=6, max_sessions=24, rounds=8, session_seconds=12.0
)
LAYER_SHARE = 0.35  # of the soft time limit


def profile_space(
    space: SearchSpace,
    device: Device,
    path: Path,
    *,
    precision: Precision = "fp32",
    budget_minutes: float = math.inf,
    soft_seconds: float = 100.0,
    on_progress: OnProgress = lambda text, share: None,
) -> tuple[DeviceProfile, int]:
    """Measure what the profile at ``path`` lacks of ``space``, and save it.

    An interrupted run leaves a journal beside the file, which the next run reads: at most the
    round in hand is lost.

    Args:
        space: What is needed.
        device: Measures.
        path: The profile's file.
        precision: Of the layers and networks; a profile can hold both.
        budget_minutes: Hard limit, half of it on layers.
        soft_seconds: Until then what is not yet precise is measured again and again.
        on_progress: Called with what is going on and its share done.

    Returns:
        The profile, and the number of layers measured now.

    Raises:
        DeviceMismatchError: The file holds samples of another device.
        InvalidInputError, OutputError, DeviceError: See their classes.
    """
    with open_journal(path) as journal:
        profile = profile_at(path, device.identity)
        old = replay(journal, device)
        started = time.monotonic()
        layer_job, network_job = jobs_of(space, profile, precision, budget_minutes, soft_seconds)
        missing = profile.unmeasured(space, precision)
        measured = measure_job(device, layer_job, journal, old, on_progress)
        profile = _with_layers(profile, missing, measured, precision)
        if measured:
            profile.write(path)
        left = started + soft_seconds - time.monotonic()
        network_job = replace(network_job, rule=replace(network_job.rule, soft_seconds=left))
        measured_networks = measure_job(device, network_job, journal, old, on_progress)
        archs = calibration_archs(space, profile, precision)
        transfers = {
            k: v for k, v in profile.transfers.items() if k != space_key(space, precision)
        }
        profile = profile.model_copy(update={"transfers": transfers})
        samples = [measured_networks[name] for name in network_job.networks]
        if not profile.networks:  # all its minutes, and not those alone that came first
            of_layers = [record.samples.thaw() for record in profile.layers.values()]
            level = LevelRecord(**asdict(typical_level([*of_layers, *samples])))
            profile = profile.model_copy(update={"level": level})
        profile = with_networks(profile, space, archs, samples, precision)
        profile.write(path)
        journal.remove()
        return profile, len(missing)


@dataclass(frozen=True)
class Job:
    """Models of one kind that a profile lacks, and how well to measure them."""

    title: str
    networks: dict[str, list[Node]]
    rule: StopRule
    precision: Precision


def jobs_of(
    space: SearchSpace,
    profile: DeviceProfile,
    precision: Precision,
    budget_minutes: float,
    soft_seconds: float,
) -> tuple[Job, Job]:
    """The layers, then the calibration networks; times as of :func:`profile_space`."""
    hard = budget_minutes * 60 * 0.5
    missing = profile.unmeasured(space, precision)
    layers = {layer_key(x, precision): chain([x]) for x in missing}
    networks = named(space, calibration_archs(space, profile, precision), precision)
    soft = soft_seconds * LAYER_SHARE
    return (
        Job(
            f"{len(layers)} layers", layers,
            replace(LAYER_RULE, max_seconds=hard, soft_seconds=soft), precision,
        ),
        Job(
            f"{len(networks)} networks", networks,
            replace(NETWORK_RULE, max_seconds=hard, soft_seconds=soft_seconds - soft), precision,
        ),
    )  # fmt: skip


def write_models(
    job: Job, folder: Path, on_progress: OnProgress = lambda text, share: None
) -> dict[str, Path]:
    """Each network as ONNX with random weights; its file's name is what an error shows."""
    paths = {}
    for i, (name, nodes) in enumerate(job.networks.items()):
        path = folder / f"{i:04d} {name.replace('/', ' ')}.onnx"
        paths[name] = write_timed(path, nodes, job.precision)
        if job.precision != "fp32":
            on_progress(f"quantizing {job.title}", (i + 1) / len(job.networks))
    return paths


def write_timed(path: Path, nodes: list[Node], precision: Precision, seed: int = 0) -> Path:
    """A network for timing, with random weights."""
    write_model(path, nodes, RandomWeights(seed))
    if precision == "int8":
        path.write_bytes(quantize_for_timing(path.read_bytes(), nodes[0].layer))
    return path


def quantize_for_timing(content: bytes, first: Layer) -> bytes:
    """A network in 8 bits, calibrated on noise: how long it takes does not depend on scales."""
    shape = (NUM_NOISE, first.in_channels, first.height, first.width)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return quantize(content, noise)


def measure_job(
    device: Device,
    job: Job,
    journal: ProfileJournal,
    old: Mapping[str, Samples],
    on_progress: OnProgress,
) -> dict[str, Samples]:
    """Write each network as ONNX and time it."""
    with temporary_folder() as folder:
        paths = write_models(job, folder, on_progress)
        return timed(device, paths, job.title, job.rule, journal, old, on_progress)


def timed(
    device: Device,
    paths: Mapping[str, Path],
    title: str,
    rule: StopRule,
    journal: ProfileJournal,
    old: Mapping[str, Samples],
    on_progress: OnProgress,
) -> dict[str, Samples]:
    """Time models, journalling every round.

    Args:
        device: Measures.
        paths: Name -> ONNX file.
        title: What it is called.
        rule: When to stop.
        journal: Takes every round.
        old: Samples of an interrupted run.
        on_progress: Called with what is going on and its share done.
    """
    samples = {name: old[name] for name in paths if name in old}

    def on_round(number: int, touches: dict[str, tuple[float, Level]]) -> None:
        entry = {n: (ms, at.core_ms, at.memory_ms) for n, (ms, at) in touches.items()}
        sizes = {n: paths[n].stat().st_size for n in touches} if number == 0 else {}
        journal.append(JournalRound(first=number == 0, bytes=sizes, touches=entry))

    return measure(
        device, paths, rule, samples=samples, on_round=on_round,
        on_progress=lambda progress: on_progress(title, progress.done),
    )  # fmt: skip


def replay(journal: ProfileJournal, device: Device) -> dict[str, Samples]:
    """Samples of an interrupted run; the journal's first line says whose they are."""
    if journal.num_cut:
        text = (
            f"{journal.num_cut} lines of {journal.path} were edited or damaged: they are measured "
            "again"
        )
        device.notes.add("journal", text)
    identity = device.identity.model_dump(exclude={"recorded"})
    first = journal.entries[0] if journal.entries else None
    if not isinstance(first, JournalHead):
        journal.clear()
        journal.append(JournalHead(identity=identity))
        return {}
    if first.identity != identity:
        raise DeviceMismatchError(
            "an interrupted profile of another device is in the way", f"delete {journal.path}"
        )
    samples: dict[str, Samples] = {}
    for entry in journal.entries[1:]:
        if not isinstance(entry, JournalRound):
            continue
        for name, (ms, core_ms, memory_ms) in entry.touches.items():
            if name not in samples and not (entry.first and name in entry.bytes):
                continue  # of a session whose beginning is not here
            samples.setdefault(name, Samples(entry.bytes.get(name, 0)))
            samples[name].add(entry.first, ms, Level(core_ms, memory_ms))
    return samples


def _with_layers(
    profile: DeviceProfile,
    layers: list[Layer],
    measured: Mapping[str, Samples],
    precision: Precision,
) -> DeviceProfile:
    records = dict(profile.layers)
    counted_by = "fvcore" if importlib.util.find_spec("fvcore") else "deploynas"
    for layer in layers:
        key = layer_key(layer, precision)
        macs, params = _costs(layer, counted_by)
        records[key] = LayerRecord(
            macs=macs, params=params, counted_by=counted_by, samples=SampleRecord.of(measured[key])
        )
    level = profile.level
    if level is None and measured:
        level = LevelRecord(**asdict(typical_level(measured.values())))
    return profile.model_copy(update={"layers": records, "level": level}, deep=True)


def _costs(layer: Layer, counted_by: str) -> tuple[int, int]:
    """MACs and params: fvcore's count, which must equal the layer's own arithmetic.

    Where the extra ``search`` is not installed (a board), the arithmetic alone.
    """
    if counted_by == "fvcore":
        from deploynas.nn import fvcore_costs

        return fvcore_costs(layer)
    return layer_costs.macs(layer), layer_costs.params(layer)


def calibration_archs(
    space: SearchSpace, profile: DeviceProfile, precision: Precision = "fp32"
) -> Archs:
    """Networks that calibrate: half uniform, half spread over the space's range of sizes.

    A space that was calibrated at other resolutions keeps those networks beside the new ones.
    """
    key = space_key(space, precision)
    known = {r.resolution for r in profile.networks.get(key, ())}
    if key in profile.transfers:  # too few
        known = set()
    new = [one for one in space.resolutions if one not in known]
    if not new:
        return space.as_rows([])
    rng = np.random.default_rng([1, *(n for one in space.resolutions for n in one.numbers)])
    archs = np.concatenate(
        [
            space.sample(NUM_CALIBRATION // 2, rng),
            space.sample_spread(max(1, NUM_CALIBRATION // 2 - 2 * len(new)), rng),
            *[space.smallest() for _ in new],
            *[space.largest() for _ in new],
        ]
    )
    resolutions = [new[i % len(new)] for i in range(len(archs))]
    return np.unique(space.canonical(space.with_resolution(archs, resolutions)), axis=0)


def with_networks(
    profile: DeviceProfile,
    space: SearchSpace,
    archs: Archs,
    samples: list[Samples],
    precision: Precision = "fp32",
) -> DeviceProfile:
    """A profile with more calibration networks, its error judged anew.

    Args:
        profile: Has every layer of the space.
        space: Of the networks.
        archs: ``(n, num_choices)``.
        samples: One a network.
        precision: Of the samples.
    """
    key = space_key(space, precision)
    records = list(profile.networks.get(key, ()))
    for arch, measured in zip(space.decode(archs), samples, strict=True):
        records.append(
            NetworkRecord.model_validate(
                {"architecture": arch, "samples": SampleRecord.of(measured)}
            )
        )
    whole = space.with_resolutions([r.resolution for r in records])
    estimates = [profile.estimate(r.samples) for r in records]
    times = np.array([e.median for e in estimates])
    rows = whole.encode([r.architecture for r in records])
    features = features_of(whole, profile, precision)
    predicted = cross_validate(features(rows), times, features.fit)
    noise = own_half_widths([r.samples.thaw() for r in records], profile.reference)
    validation = judge(predicted, times, noise)
    before = profile.validations.get(key)
    made = time.time() if samples or before is None else before.made
    validation = validation.model_copy(update={"made": made})
    return profile.model_copy(
        update={
            "networks": {**profile.networks, key: tuple(records)},
            "validations": {**profile.validations, key: validation},
        }
    )


def named(space: SearchSpace, archs: Archs, precision: Precision) -> dict[str, list[Node]]:
    """Whole networks by their names in a journal."""
    prefix = space_key(space, precision)
    return {f"{prefix}#{''.join(map(str, arch))}": space.layers(arch) for arch in archs}
