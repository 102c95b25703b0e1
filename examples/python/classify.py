"""Classifies an image with an exported network: numpy, Pillow and ONNX Runtime, nothing else.

python examples/python/classify.py IMAGE [EXPORT]      EXPORT: exports/fashion-mnist
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def prepare(image: Image.Image, preprocessing: dict) -> np.ndarray:
    """``(1, channels, side, side)``: the network's input, made as its manifest says."""
    image = image.convert("L" if preprocessing["channels"] == 1 else "RGB")
    square = min(image.size) * preprocessing["crop"]
    left, top = (image.width - square) / 2, (image.height - square) / 2
    side = preprocessing["resolution"]
    image = image.resize(
        (side, side), Image.Resampling.BILINEAR, box=(left, top, left + square, top + square)
    )
    pixels = np.asarray(image, np.float32).reshape(side, side, -1) / 255
    pixels = (pixels - np.float32(preprocessing["mean"])) / np.float32(preprocessing["std"])
    return pixels.transpose(2, 0, 1)[None]


def main() -> None:
    """Print the three likeliest classes."""
    image = Path(sys.argv[1])
    export = Path(sys.argv[2] if len(sys.argv) > 2 else "exports/fashion-mnist")
    manifest = json.loads((export / "manifest.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(
        export / "model.onnx", providers=["CPUExecutionProvider"]
    )
    pixels = prepare(Image.open(image), manifest["preprocessing"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    scores = np.exp(logits - logits.max())
    scores /= scores.sum()
    for i in np.argsort(-scores)[:3]:
        print(f"{scores[i]:.4f}  {manifest['classes'][i]}")


if __name__ == "__main__":
    main()
