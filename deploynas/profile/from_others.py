"""Measures the few networks that a profile from other devices' profiles needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from deploynas.device import Device, StopRule
from deploynas.errors import IncompleteProfileError, InvalidInputError
from deploynas.onboard.timing import typical_level
from deploynas.profile.device_profile import (
    DeviceProfile,
    LevelRecord,
    Precision,
    SourceRecord,
    TransferRecord,
    open_journal,
    profile_at,
    space_key,
)
from deploynas.profile.latency_model import LatencyModel
from deploynas.profile.profiler import Job, OnProgress, measure_job, named, replay, with_networks
from deploynas.profile.transfer import TransferFeatures
from deploynas.spaces import SearchSpace

LEAST = 5  # networks: fewer tell nothing of their own error
USUAL = 10
RULE = StopRule(
    precision=0.005, min_sessions=4, max_sessions=8, rounds=8, session_seconds=1.5,
    soft_seconds=10.0,
)  # fmt: skip


def transfer_space(
    space: SearchSpace,
    device: Device,
    path: Path,
    sources: Mapping[Path, DeviceProfile],
    num_networks: int = USUAL,
    *,
    precision: Precision = "fp32",
    on_progress: OnProgress = lambda text, share: None,
) -> DeviceProfile:
    """Measure whole networks of ``space``, and save a profile that rests on others for the rest.

    Networks that the file at ``path`` holds of an earlier transfer count; an interrupted run
    leaves a journal as :func:`deploynas.profile.profile_space` does.

    Args:
        space: What is needed.
        device: Measures.
        path: The profile's file.
        sources: Of other devices, calibrated for the space, by the names of their files.
        num_networks: In all.
        precision: Of the networks.
        on_progress: Called with what is going on and its share done.

    Raises:
        InvalidInputError: Too few networks, a source of this very device, or the file holds what
            was measured here already.
        IncompleteProfileError: A source is not calibrated for the space.
        DeviceMismatchError: The file holds samples of another device.
        OutputError, DeviceError: See their classes.
    """
    if num_networks < max(LEAST, len(space.resolutions)):
        least = f"{LEAST} networks, and one a resolution, are the least that tell"
        raise InvalidInputError(f"{least}, got {num_networks} for {space.name}")
    key = space_key(space, precision)
    with open_journal(path) as journal:
        profile = profile_at(path, device.identity)
        if key in profile.networks and key not in profile.transfers:
            raise InvalidInputError(
                f"{path} holds {space.name} as it was measured there",
                "choose another file with --output",
            )
        records = profile.networks.get(key, ())
        sides = {*space.resolutions, *(record.resolution for record in records)}
        space = space.with_resolutions(sorted(sides))
        lent = tuple(_source(space, device, *pair, precision) for pair in sources.items())
        features = TransferFeatures(space, TransferRecord(sources=lent))
        known = space.encode([record.architecture for record in records])
        archs = features.design(num_networks - len(known), known)
        if len(known) + len(archs) < num_networks:
            raise InvalidInputError(
                f"{space.name} has no {num_networks} networks that differ",
                "profile it as it is: leave out --from",
            )
        job = Job(f"{len(archs)} networks", named(space, archs, precision), RULE, precision)
        measured = measure_job(device, job, journal, replay(journal, device), on_progress)
        samples = [measured[name] for name in job.networks]
        level = profile.level or LevelRecord(**asdict(typical_level(samples)))
        transfers = {**profile.transfers, key: TransferRecord(sources=lent)}
        profile = profile.model_copy(update={"transfers": transfers, "level": level}, deep=True)
        profile = with_networks(profile, space, archs, samples, precision)
        profile = _with_layers(profile, space, precision)
        profile.write(path)
        journal.remove()
        return profile


def _source(
    space: SearchSpace, device: Device, name: Path, profile: DeviceProfile, precision: Precision
) -> SourceRecord:
    """What a profile says of the layers of a space."""
    if not profile.identity.differences(device.identity):
        raise InvalidInputError(
            f"{name} is of this very device", "add to it without --from, or name another"
        )
    try:
        model = LatencyModel(space, profile, precision)
    except IncompleteProfileError as error:
        raise IncompleteProfileError(f"{name} is no source for {space.name}: {error}") from None
    terms = zip(space.layer_table, model.layer_terms, strict=True)
    return SourceRecord(
        device=profile.identity.title,
        terms={layer.key: float(term) for layer, term in terms},
        intercept=model.intercept_term,
        power=model.power,
    )


def _with_layers(
    profile: DeviceProfile, space: SearchSpace, precision: Precision
) -> DeviceProfile:
    """A profile whose transferred layers have times of this device."""
    key = space_key(space, precision)
    model = LatencyModel(space, profile, precision)
    terms = zip(space.layer_table, model.layer_terms, strict=True)
    layer_ms = {layer.key: max(0.0, float(term)) for layer, term in terms}
    transfer = profile.transfers[key].model_copy(update={"layer_ms": layer_ms})
    return profile.model_copy(update={"transfers": {**profile.transfers, key: transfer}})
