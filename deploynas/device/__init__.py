"""Where networks run: the device protocol, identity, the timing engine, the workers."""

from __future__ import annotations

from deploynas.device.base import Device, Identity
from deploynas.device.cpu import CpuDevice
from deploynas.device.registry import DEVICE_NAMES, open_attached, open_device, open_same
from deploynas.device.timing import Estimate, Level, Samples, StopRule, measure

__all__ = [
    "DEVICE_NAMES",
    "CpuDevice",
    "Device",
    "Estimate",
    "Identity",
    "Level",
    "Samples",
    "StopRule",
    "measure",
    "open_attached",
    "open_device",
    "open_same",
]
