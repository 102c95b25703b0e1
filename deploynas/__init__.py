"""Hardware-aware neural architecture search that deploys what it finds.

``import deploynas as dn`` imports neither torch nor ONNX Runtime; the names below load on use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "space": "deploynas.spaces",
    "space_names": "deploynas.spaces",
    "Supernet": "deploynas.nn",
    "build": "deploynas.nn",
    "load_net": "deploynas.nn",
    "DeviceProfile": "deploynas.profile",
    "LatencyModel": "deploynas.profile",
    "imagenet_predictor": "deploynas.search.imagenet",
}
__all__ = list(_LAZY)  # noqa: PLE0605 - the names that __getattr__ serves


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'deploynas' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
