"""How far a machine's level wanders, as far as its profile tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploynas.device import Drift
from deploynas.profile.device_profile import DeviceProfile, NetworkRecord

WANDER = 0.07  # of a machine on which nothing was measured for hours; see docs/devices.md
SESSIONS = 5  # that a network's latency is the mean of, at least


def unmeasured(profile: DeviceProfile, records: Sequence[NetworkRecord]) -> Drift:
    """What is to be expected of a machine on which nothing was measured since its profile.

    That it becomes as slow as in the slowest :data:`SESSIONS` sessions on end in which the
    profile's own networks were measured, as the reference models tell, and slower by
    :data:`WANDER` at least: a profile takes minutes, and levels wander by hours.
    """
    slowest = 0.0
    for record in records:
        levels = record.samples.thaw().slowdowns(profile.reference)
        logs = np.log([float(np.median(session)) for session in levels])
        width = min(SESSIONS, len(logs))
        slowest = max(slowest, float(np.convolve(logs, np.ones(width) / width, "valid").max()))
    return Drift(spread=max(WANDER, float(np.expm1(slowest))))
