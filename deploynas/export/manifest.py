"""What an export says about itself. Read without torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from deploynas.artifacts import Artifact, Record, unchanged
from deploynas.device import Drift, Identity
from deploynas.spaces import ArchRecord, Resolution, SpaceRecord

ONNX_NAME = "model.onnx"
Weights = Literal["inherited", "fine-tuned", "from-scratch", "published"]
BatchNorm = Literal["calibrated", "uncalibrated"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocessing(Record):
    """From an image to the model's input.

    The largest centre rectangle of the resolution's shape (a square, where that is one), ``crop``
    times as high and wide, resized to it (bilinear, antialiased), divided by 255, normalised.

    Attributes:
        resolution: Of the network's input.
        in_model: Whether the model does it: its input is uint8 ``(1, height, width, channels)``,
            its output probabilities. Elsewhere the input is float32 and the output logits.
        image_size: Height and width of the images that such a model crops and resizes; it leaves
            both to the caller where None.
    """

    resolution: Resolution
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    resize: str = "bilinear"
    crop: float = 1.0
    in_model: bool = False
    image_size: tuple[int, int] | None = None


class Quantization(Record):
    """What INT8 cost and gained.

    Attributes:
        accuracy_float, accuracy_int8: Of the two files, on ``num_images`` validation images.
        float_layers: Layers that keep their precision, because they are sensitive.
        ratio, ratio_low, ratio_high: Latency of the INT8 file over the float one's, measured in
            turn, with the interval that holds the truth in 95 % of all exports, however often it
            was looked at; None where the device was not attached.
    """

    accuracy_float: float
    accuracy_int8: float
    num_images: int
    num_calibration_images: int
    float_layers: tuple[str, ...]
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None

    @property
    def is_faster(self) -> bool | None:
        """Whether INT8 is the faster one; None where that is not known."""
        if self.ratio_low is None or self.ratio_high is None:
            return None
        return True if self.ratio_high < 1 else False if self.ratio_low > 1 else None


class Converted(Record):
    """The network in a runtime's own format, beside ``model.onnx``.

    Attributes:
        runtime: Its name and version, as that of a device's identity.
        files: Name -> SHA-256, first of the file that is opened.
        difference: Of its answers to noise from those of ``model.onnx`` by ONNX Runtime: the
            largest, relative to the deviation of all.
    """

    runtime: str
    files: dict[str, str]
    difference: float


class Manifest(Artifact):
    """``manifest.json`` beside ``model.onnx``. Format 1: first version; 2 (0.1.0): a digest.

    Attributes:
        core_ms, memory_ms: The reference level of ``predicted_latency_ms``.
        profile: Path of the device profile; ``drift`` is that of the machine since then, with
            which the latency is predicted. Empty, and None, in earlier files.
        prediction_error: Relative half-width of the prediction's bound.
        data_size: At which the data was loaded, before it was resized.
        predicted_latency_ms: None where the profile lacks the network's own classifier, and in
            another precision than the search's.
        weights: The supernet's own, trained further, trained anew, or published.
        batch_norm: Whether its statistics were set for this network; elsewhere they are slices
            of the largest network's, and its accuracy is unknown.
        accuracy: Validation accuracy of the PyTorch network, a fraction; or what a predictor
            expects, as ``accuracy_kind`` says.
        parity_max_abs_diff: Largest difference of a logit, PyTorch against the exported file,
            over ``parity_num_images`` images, which are real ones or noise.
        preprocessing_max_abs_diff: Largest difference of a probability between this file, which
            preprocesses, and its network after the preprocessing of training; None in others.
        limits: What else the search was held to: costs that the architecture keeps, and latencies
            of other devices.
        converted: What was written beside it, which ``check`` then judges.
        recorded_outputs: Answers to fixed inputs, which :mod:`deploynas.export.probe` makes again.
    """

    SCHEMA: ClassVar[str] = "deploynas-export"
    VERSION: ClassVar[int] = 2
    ANEW: ClassVar[str] = "export it again: deploynas export"
    MIGRATIONS = {1: unchanged}

    space: SpaceRecord
    architecture: ArchRecord
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    data_fingerprint: str
    data_source: str
    data_size: Resolution
    opset: int
    device: Identity
    core_ms: Positive
    memory_ms: Positive
    profile: str = ""
    drift: Drift | None = None
    predicted_latency_ms: Positive | None
    prediction_error: float
    latency_budget_ms: Positive | None
    limits: dict[str, Positive] = {}
    weights: Weights
    batch_norm: BatchNorm
    accuracy: float | None
    accuracy_kind: Literal["measured", "predicted"]
    macs: int
    params: int
    parity_max_abs_diff: float
    parity_num_images: int
    parity_images: Literal["real", "noise"]
    model_sha256: str
    quantization: Quantization | None = None
    preprocessing_max_abs_diff: float | None = None
    converted: Converted | None = None
    recorded_outputs: tuple[tuple[float, ...], ...] = ()
    versions: dict[str, str]

    @property
    def at_profile_ms(self) -> float | None:
        """The predicted latency without the drift."""
        then = self.drift.factor if self.drift else 1.0
        return None if self.predicted_latency_ms is None else self.predicted_latency_ms / then

    @property
    def elsewhere(self) -> dict[str, float]:
        """The limits that are latencies of other devices."""
        return {name: limit for name, limit in self.limits.items() if "." in name}

    @property
    def files(self) -> dict[str, str]:
        """Name -> SHA-256 of the model's files: first of the one that a device opens."""
        own = self.converted.files if self.converted else {}
        return {**own, ONNX_NAME: self.model_sha256}
