"""What an export is expected to take on a machine as it is now. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploynas.device import Device, Drift
from deploynas.errors import IncompleteProfileError, InvalidInputError, UnknownNameError
from deploynas.export.manifest import Manifest
from deploynas.profile import DeviceProfile, LatencyModel
from deploynas.profile.device_profile import Precision, again_command
from deploynas.profile.refresh import refresh
from deploynas.spaces import recorded_space


@dataclass(frozen=True)
class Expected:
    """A prediction at the level of now.

    Attributes:
        latency_ms: Milliseconds.
        error: Half-width of its bound, relative.
        drift: Of the machine since its profile.
        again: The command that makes the profile anew, where the machine is not that of its
            profile any more; else empty.
    """

    latency_ms: float
    error: float
    drift: Drift
    again: str


def expected_now(
    manifest: Manifest,
    device: Device,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> Expected | None:
    """Measure a few of the profile's networks, and predict by them.

    Args:
        manifest: Of the export.
        device: Measures.
        on_progress: Called with what is going on and its share done.

    Returns:
        None where nothing was predicted, or the profile is not here, not of this device, or
        lacks the space by now.

    Raises:
        DeviceError: It failed; see its class.
    """
    predicted, path = manifest.at_profile_ms, Path(manifest.profile)
    if predicted is None or not path.is_file():
        return None
    try:
        profile = DeviceProfile.read(path)
        if profile.identity.differences(device.identity):
            return None
        space = recorded_space(manifest.space)
        held = space.with_resolutions([manifest.preprocessing.resolution])
        precision: Precision = "int8" if manifest.quantization else "fp32"
        model = LatencyModel(held, profile, precision)
    except (IncompleteProfileError, InvalidInputError, UnknownNameError):
        return None
    model = model.at(refresh(model, device, on_progress=on_progress))
    now = predicted * model.drift.factor
    is_other = model.drift.exceeds(model.validation.margin)
    again = again_command(path, space, profile, precision) if is_other else ""
    return Expected(now, model.half_width, model.drift, again)
