"""The ``web`` devices: onnxruntime-web (WebAssembly) in Node and in a headless browser."""

from __future__ import annotations

from deploynas.device.web.device import HOSTS, WebDevice
from deploynas.device.web.install import install_runtime

__all__ = ["HOSTS", "WebDevice", "install_runtime"]
