"""Networks -> ONNX, and the proof that nothing changed on the way."""

from __future__ import annotations

from deploynas.graph.emit import DEFAULT_OPSET, RandomWeights, StateWeights, emit, write_model

__all__ = ["DEFAULT_OPSET", "RandomWeights", "StateWeights", "emit", "write_model"]
