"""What an export says about itself. Read without torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from deploynas.artifacts import Artifact, Record
from deploynas.device import Identity

Weights = Literal["inherited", "fine-tuned", "from-scratch"]


class Preprocessing(Record):
    """From an image to the model's input: resize (bilinear), divide by 255, normalise."""

    resolution: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = "bilinear"


class Manifest(Artifact):
    """``manifest.json`` beside ``model.onnx``. Format 1 (0.1.0): first version.

    Attributes:
        core_ms, memory_ms: The reference level of ``predicted_latency_ms``.
        prediction_error: Relative half-width of the prediction's 95 % residual.
        weights: The supernet's own, trained further, or trained anew.
        accuracy: Validation accuracy of the PyTorch network, a fraction.
        parity_max_abs_diff: Largest difference of a logit, PyTorch against the exported file,
            over ``parity_num_images`` real images.
    """

    SCHEMA: ClassVar[str] = "deploynas-export"
    VERSION: ClassVar[int] = 1

    space: dict[str, str | int | list[int]]
    architecture: dict[str, int | list[int]]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    data_fingerprint: str
    data_source: str
    opset: int
    device: Identity
    core_ms: float
    memory_ms: float
    predicted_latency_ms: float
    prediction_error: float
    latency_budget_ms: float | None
    weights: Weights
    accuracy: float
    macs: int
    params: int
    parity_max_abs_diff: float
    parity_num_images: int
    model_sha256: str
    versions: dict[str, str]
