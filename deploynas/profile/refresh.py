"""The drift of a machine since its profile, measured.

A profile predicts at the level of its own minutes, and the reference models tell no more than
part of what a machine drifts by. A few of the networks that calibrated it, measured again, tell
the rest: how much longer everything takes now, and how far single networks depart from that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deploynas.device import Device, Drift, StopRule, measure
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.timing import CONFIDENCE, Floats, t_quantile, typical_level
from deploynas.profile.device_profile import NetworkRecord
from deploynas.profile.latency_model import LatencyModel
from deploynas.profile.levels import unmeasured
from deploynas.profile.profiler import write_timed

RULE = StopRule(
    precision=0.01, min_sessions=4, max_sessions=6, rounds=3, session_seconds=1.0, max_seconds=10.0
)
NUM_NETWORKS = 6
SESSION_SECONDS = 3.0  # that the least rounds of a session may take on a slow device
RUNS_OF_SESSION = 12  # of a network: the rounds that there are at least, of three runs each


def refresh(
    model: LatencyModel,
    device: Device,
    *,
    rule: StopRule | None = None,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> Drift:
    """Measure a few of the profile's own networks again.

    Args:
        model: Of the profile.
        device: Must be the one that made the profile.
        rule: Of the measurement.
        on_progress: Called with what is going on and its share done.

    Raises:
        DeviceMismatchError: ``device`` is another one.
        DeviceError: It failed; see its class.
    """
    profile = model.profile
    profile.require_same_device(
        device.identity, Path("the profile"), "refresh it on the device that made it"
    )
    chosen = anchors(model)
    rows = model.space.encode([record.architecture for record in chosen])
    text = f"measuring {len(chosen)} networks of the profile again"
    on_progress(text, 0.0)
    with temporary_folder() as folder:
        paths = {
            str(i): write_timed(folder / f"{i}.onnx", model.space.layers(row), model.precision, i)
            for i, row in enumerate(rows)
        }
        found = measure(
            device, paths, rule or RULE, on_progress=lambda p: on_progress(text, p.done)
        )
    before = [profile.estimate(record.samples) for record in chosen]
    level = typical_level(found.values())
    num_sessions = min(len(one.ms) for one in found.values())
    # as they are, or by the references at the level of these seconds: whichever agrees better
    raw, by_level = (
        np.array(
            [
                [np.median(np.log(touches)) for touches in one.sessions(at)[:num_sessions]]
                for one in found.values()
            ]
        )
        - np.log([[one.median] for one in before])
        for at in (None, level)
    )
    slower = min(raw, by_level, key=lambda way: way.mean(axis=1).std())
    noise_before = np.mean(
        [
            (one.half_width / t_quantile(CONFIDENCE, max(1, len(record.samples.ms) - 1))) ** 2
            for one, record in zip(before, chosen, strict=True)
        ]
    )
    at_profile = [one.estimate(profile.reference).median for one in found.values()]
    unexplained = np.mean(np.log(at_profile) - np.log([one.median for one in before]))
    widest = unmeasured(profile, model.records).spread
    network, scatter = _of_one_more(slower, float(noise_before), widest)
    return Drift(
        factor=math.exp(float(slower.mean())),
        spread=math.hypot(network, _of_another_minute(raw.mean(axis=0), widest)),
        scatter=scatter,
        unexplained=math.exp(float(unexplained)),
        num_networks=len(chosen),
        core_ms=level.core_ms,
        memory_ms=level.memory_ms,
        made=time.time(),
        profiled=model.validation.made,
    )


def _of_one_more(slower: Floats, noise_before: float, widest: float) -> tuple[float, float]:
    """How far one more network may be from the mean, in 95 % of cases; the standard deviation.

    What these networks scatter by is in part the noise of their measurements, now and in the
    profile, which is not one of the other network: the fit's margin has it.

    Args:
        slower: ``(num_networks, num_sessions)`` logarithms of ratios now to then.
        noise_before: Variance of the logarithms of what was then.
        widest: Where a single network tells nothing of others.
    """
    num, sessions = slower.shape
    if num < 2:
        return widest, 0.0
    networks = slower.mean(axis=1)
    scatter = float(networks.var(ddof=1))
    rest = slower - networks[:, None] - slower.mean(axis=0) + slower.mean()
    noise_now = float((rest**2).sum()) / ((num - 1) * max(1, sessions - 1)) / sessions
    own = max(0.0, scatter - noise_before - noise_now)
    half = t_quantile(CONFIDENCE, num - 1) * math.sqrt(own + scatter / num)
    return half, math.sqrt(own)


def _of_another_minute(sessions: Floats, widest: float) -> float:
    """How far the mean of as many sessions in another minute may be, in 95 % of cases.

    Args:
        sessions: ``(num_sessions,)`` logarithms of how slow the machine was.
        widest: Where a minute was so restless that it tells no more than that.
    """
    num = len(sessions)
    if num < 2:
        return widest
    deviation = float(sessions.std(ddof=1))
    return min(widest, t_quantile(CONFIDENCE, num - 1) * deviation * math.sqrt(2 / num))


def anchors(
    model: LatencyModel, num: int = NUM_NETWORKS, seconds: float = SESSION_SECONDS
) -> list[NetworkRecord]:
    """Calibration networks spread over the model's range of latencies, of all its resolutions.

    Args:
        model: Of the profile.
        num: How many, where there are as many.
        seconds: That the least of a session may take: on a slow device the slowest are left out.
    """
    profile = model.profile
    timed = sorted(
        ((profile.estimate(record.samples).median, i) for i, record in enumerate(model.records))
    )
    while True:
        picked: list[tuple[float, NetworkRecord]] = []
        for places in np.array_split(np.arange(len(timed)), min(num, len(timed))):
            group = [(timed[p][0], model.records[timed[p][1]]) for p in places]
            seen = [record.resolution for _, record in picked]
            middle = (len(group) - 1) / 2
            best = min(
                range(len(group)),
                key=lambda i: (seen.count(group[i][1].resolution), abs(i - middle)),
            )
            picked.append(group[best])
        took = RUNS_OF_SESSION * sum(ms for ms, _ in picked) / 1e3
        if took <= seconds or len(timed) <= num:
            return [record for _, record in picked]
        timed.pop()
