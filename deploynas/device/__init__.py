"""Where networks run: devices of this machine and elsewhere, and measuring on them."""

from __future__ import annotations

from deploynas.device.base import Device, Identity
from deploynas.device.drift import Drift
from deploynas.device.local import LocalDevice
from deploynas.device.measuring import Progress, measure
from deploynas.device.registry import device_names, open_attached, open_device, open_same
from deploynas.onboard.timing import Estimate, Level, Samples, StopRule

__all__ = [
    "Device",
    "Drift",
    "Estimate",
    "Identity",
    "Level",
    "LocalDevice",
    "Progress",
    "Samples",
    "StopRule",
    "device_names",
    "measure",
    "open_attached",
    "open_device",
    "open_same",
]
