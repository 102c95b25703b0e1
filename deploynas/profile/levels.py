"""How far a machine's level wanders, as far as its profile tells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deploynas.device import Drift, Level, Samples
from deploynas.onboard.timing import CONFIDENCE, t_quantile
from deploynas.profile.device_profile import DeviceProfile, NetworkRecord

WANDER = 0.07  # of a machine on which nothing was measured for hours; see docs/devices.md
SESSIONS = 5  # that a network's latency is the mean of, at least


def own_half_widths(samples: Sequence[Samples], at: Level) -> list[float]:
    """Relative half-widths of 95 % intervals, without what all networks of a session share.

    A session that was slow was so for every network in it, more than the reference models tell:
    that moves the level of them all, which :func:`unmeasured` and the drift allow for, and says
    nothing of how far one network is from another.

    Args:
        samples: Of networks that were measured in the same sessions, of which the first few that
            all of them have are looked at.
        at: Level of the machine.
    """
    num = min(len(one.ms) for one in samples)
    if num < 2 or len(samples) < 2:
        return [one.estimate(at).half_width for one in samples]
    logs = np.array(
        [[np.median(np.log(touches)) for touches in one.sessions(at)[:num]] for one in samples]
    )
    own = logs - logs.mean(axis=1, keepdims=True)
    rest = own - own.mean(axis=0)
    # the mean over networks took a share of each one's own
    deviations = rest.std(axis=1, ddof=1) * math.sqrt(len(samples) / (len(samples) - 1))
    half = t_quantile(CONFIDENCE, num - 1) * deviations / math.sqrt(num)
    return [float(x) for x in half]


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
