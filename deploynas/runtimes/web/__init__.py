"""onnxruntime-web (WebAssembly), in Node and in a headless browser."""

from __future__ import annotations

from deploynas.runtimes.web.install import install_runtime
from deploynas.runtimes.web.runtime import RUNTIME

__all__ = ["RUNTIME", "install_runtime"]
