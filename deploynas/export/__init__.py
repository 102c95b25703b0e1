"""An architecture and weights -> exports/<name>/: ONNX and manifest.

The manifest is read without torch; :mod:`deploynas.export.exporter` needs it.
"""

from __future__ import annotations

from deploynas.export.manifest import Manifest, Preprocessing

__all__ = ["Manifest", "Preprocessing"]
