"""An export in INT8: as accurate as allowed, and measured beside the float one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deploynas.check.regression import Baseline, against
from deploynas.check.verdict import Examples, file_accuracy
from deploynas.data import ImageDataset, normalise
from deploynas.device import Device
from deploynas.errors import InvalidInputError
from deploynas.export.manifest import Preprocessing, Quantization
from deploynas.export.probe import open_session
from deploynas.graph.quantize import Images, layer_names, quantize
from deploynas.onboard.folders import temporary_folder

NUM_CALIBRATION = 256  # training images
NUM_JUDGED = 2_000  # validation images, at most
NUM_PROBED = 32  # images on which layers are compared
COMPARE_SECONDS = 30.0
OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Int8:
    """What to quantize with.

    Attributes:
        dataset: Training images calibrate, validation images judge.
        max_accuracy_drop: Fraction that INT8 may lose.
        device: Measures both; None where it is not attached.
    """

    dataset: ImageDataset
    max_accuracy_drop: float
    device: Device | None

    def __call__(
        self, model: bytes, preprocessing: Preprocessing, on_progress: OnProgress
    ) -> tuple[bytes, Quantization]:
        """The INT8 file of a float one, and what it cost and gained.

        Raises:
            InvalidInputError: Even with half of the layers in float, it loses too much.
        """
        size, mean, std = preprocessing.resolution.size, preprocessing.mean, preprocessing.std
        rows = np.random.default_rng(0).permutation(len(self.dataset.train))[:NUM_CALIBRATION]
        images = normalise(self.dataset.train.batch(rows, *size), mean, std)
        val = self.dataset.val
        judged = val.take(np.arange(min(NUM_JUDGED, len(val))))
        examples = Examples(judged, mean, std, self.dataset.num_classes)
        with temporary_folder() as folder:

            def accuracy(content: bytes) -> float:
                path = folder / "judged.onnx"
                path.write_bytes(content)
                return file_accuracy(path, examples, lambda text, share: None)

            on_progress("float accuracy", 0.0)
            before = accuracy(model)
            content, kept, after = self._within(model, images, before, accuracy, on_progress)
            record = Quantization(
                accuracy_float=before, accuracy_int8=after, num_images=len(judged),
                num_calibration_images=len(images), float_layers=kept,
            )  # fmt: skip
            if self.device is None:
                return content, record
            on_progress("float and int8 in turn", 0.0)
            paths = folder / "float.onnx", folder / "int8.onnx"
            for path, data in zip(paths, (model, content), strict=True):
                path.write_bytes(data)
            found = against(self.device, paths[1], Baseline(paths[0], 0.0, COMPARE_SECONDS))
        ratio = found.ratio
        return content, record.model_copy(
            update={"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
        )

    def _within(
        self, model: bytes, images: Images, before: float,
        accuracy: Callable[[bytes], float], on_progress: OnProgress,
    ) -> tuple[bytes, tuple[str, ...], float]:  # fmt: skip
        """The file with as few layers in float as keep the accuracy, doubling their number."""
        on_progress("quantizing", 0.0)
        content = quantize(model, images)
        after = accuracy(content)
        if after >= before - self.max_accuracy_drop:
            return content, (), after
        names = layer_names(model)
        errors = []
        for i, name in enumerate(names):
            on_progress("which layers are sensitive", i / len(names))
            others = [other for other in names if other != name]
            errors.append(logit_error(model, quantize(model, images[:NUM_PROBED], others), images))
        worst = [names[i] for i in np.argsort(errors)[::-1]]
        count = 1
        while count <= max(1, len(names) // 2):
            on_progress(f"{count} layers in float", 0.0)
            kept = tuple(sorted(worst[:count], key=names.index))
            content = quantize(model, images, kept)
            after = accuracy(content)
            if after >= before - self.max_accuracy_drop:
                return content, kept, after
            count *= 2
        raise InvalidInputError(
            f"int8 loses {before - after:.2%} of accuracy even with half of the layers in float, "
            f"allowed {self.max_accuracy_drop:.2%}",
            "raise --max-accuracy-drop, or export --precision fp32",
        )


def logit_error(model: bytes, quantized: bytes, images: Images) -> float:
    """Squared error of the logits relative to their size, on a few images."""

    def logits(content: bytes) -> np.ndarray:
        session = open_session(content)
        (image,) = session.get_inputs()
        return np.concatenate(
            [session.run(None, {image.name: x[None]})[0] for x in images[:NUM_PROBED]]
        )

    expected = logits(model)
    return float(((logits(quantized) - expected) ** 2).mean() / (expected**2).mean())
