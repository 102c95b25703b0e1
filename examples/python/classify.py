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
    """``(1, channels, height, width)``: the network's input, made as its manifest says."""
    image = image.convert("L" if preprocessing["channels"] == 1 else "RGB")
    sides = str(preprocessing["resolution"]).split("x")  # 28, or "96x160": height, width
    height, width = int(sides[0]), int(sides[-1])
    tall = min(image.height, image.width * height / width) * preprocessing["crop"]
    wide = min(image.width, image.height * width / height) * preprocessing["crop"]
    left, top = (image.width - wide) / 2, (image.height - tall) / 2
    image = image.resize(
        (width, height), Image.Resampling.BILINEAR, box=(left, top, left + wide, top + tall)
    )
    pixels = np.asarray(image, np.float32).reshape(height, width, -1) / 255
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
