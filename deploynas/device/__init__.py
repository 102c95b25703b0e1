"""Where networks run: devices of this machine and elsewhere, and measuring on them."""

from __future__ import annotations

from deploynas.device.base import Device, Identity
from deploynas.device.cpu import CpuDevice
from deploynas.device.measuring import Progress, measure
from deploynas.device.registry import DEVICE_NAMES, open_attached, open_device, open_same
from deploynas.onboard.timing import Estimate, Level, Samples, StopRule

__all__ = [
    "DEVICE_NAMES",
    "CpuDevice",
    "Device",
    "Estimate",
    "Identity",
    "Level",
    "Progress",
    "Samples",
    "StopRule",
    "measure",
    "open_attached",
    "open_device",
    "open_same",
]
