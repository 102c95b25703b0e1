"""The device profile, the profiler that fills it, the latency model that reads it."""

from __future__ import annotations

from deploynas.profile.device_profile import DeviceProfile, Validation
from deploynas.profile.latency_model import LatencyModel
from deploynas.profile.profiler import profile_space

__all__ = ["DeviceProfile", "LatencyModel", "Validation", "profile_space"]
