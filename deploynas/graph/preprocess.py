"""Preprocessing as part of a model: pixels in, probabilities out. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploynas.errors import InvalidInputError
from deploynas.spaces import Resolution, ResolutionLike

ANTIALIAS_OPSET = 18  # Resize's antialias


class Box(NamedTuple):
    """A rectangle of an image, in px."""

    top: int
    left: int
    size: tuple[int, int]


def centre(height: int, width: int, crop: float, resolution: ResolutionLike = 1) -> Box:
    """The rectangle that preprocessing keeps: see :meth:`Resolution.part_of`, in whole pixels.

    Half a pixel goes where torchvision's ``CenterCrop`` has it.

    Args:
        height: Of the image.
        width: Of the image.
        crop: Share of the largest rectangle's sides.
        resolution: What it is brought to: of a square by default.
    """
    *_, tall, wide = Resolution.of(resolution).part_of(height, width, crop)
    size = max(1, round(tall)), max(1, round(wide))
    return Box(round((height - size[0]) / 2), round((width - size[1]) / 2), size)


def needs_resize(resolution: Resolution, crop: float, image_size: tuple[int, int] | None) -> bool:
    """Whether images of ``image_size`` (height, width) must be resized in the model."""
    if image_size is None:
        return False
    return centre(*image_size, crop, resolution).size != resolution.size


def with_preprocessing(
    model: bytes,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop: float = 1.0,
    image_size: tuple[int, int] | None = None,
) -> bytes:
    """A network that takes pixels as a camera or a decoder gives them.

    Its input is ``image``, uint8 ``(1, height, width, channels)``; its output ``probabilities``,
    float32 ``(1, num_classes)``.

    Args:
        model: ONNX file of a network: float32 ``(1, channels, h, w)`` to logits.
        mean: Of every channel, a fraction of 1.
        std: Of every channel, a fraction of 1.
        crop: Share of the largest centre rectangle of the network's shape that is kept, where
            there is an ``image_size``.
        image_size: Height and width of the images. The rectangle is resized as Pillow's
            antialiased bilinear filter does, but for a few levels of 255 at single pixels. Where
            None, images come cropped and resized to the network's input.

    Raises:
        InvalidInputError: The model's opset lacks an antialiased resize, or the size is no size.
    """
    whole = onnx.load_from_string(model)
    graph = whole.graph
    (image,), (logits,) = graph.input, graph.output
    channels, *sides = (d.dim_value for d in image.type.tensor_type.shape.dim[1:4])
    resolution = Resolution(*sides)
    height, width = image_size or resolution.size
    if min(height, width) < 1:
        raise InvalidInputError(f"images of {height} x {width} px: both sides are 1 or more")
    nodes: list[onnx.NodeProto] = []

    def then(operator: str, *constants: np.ndarray | None, **attributes: Any) -> None:
        """Append a node that takes what the last one gave."""
        names = [nodes[-1].output[0] if nodes else image.name]
        name = f"preprocessing.{operator}_{len(nodes)}"
        for number, constant in enumerate(constants):
            names.append("" if constant is None else f"{name}.{number}")
            if constant is not None:
                graph.initializer.append(numpy_helper.from_array(constant, names[-1]))
        nodes.append(helper.make_node(operator, names, [f"{name}.out"], name, **attributes))

    if image_size is not None:
        box = centre(height, width, crop, resolution)
        if box.size != (height, width):
            start = np.array([box.top, box.left])
            then("Slice", start, start + box.size, np.array([1, 2]))
    then("Transpose", perm=[0, 3, 1, 2])
    if needs_resize(resolution, crop, image_size):
        _require_antialias(whole)
        sizes = np.array([1, channels, *resolution.size])
        then("Resize", None, None, sizes, mode="linear", antialias=1)
    then("Cast", to=TensorProto.FLOAT)
    # in levels of 255, which spares a division
    then("Sub", _per_channel(mean))
    then("Div", _per_channel(std))
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == image.name:
                node.input[i] = nodes[-1].output[0]
    softmax = helper.make_node(
        "Softmax", [logits.name], ["probabilities"], "preprocessing.Softmax", axis=-1
    )
    body = [*nodes, *graph.node, softmax]
    del graph.node[:]
    graph.node.extend(body)
    pixels = [1, height, width, channels]
    image.CopyFrom(helper.make_tensor_value_info(image.name, TensorProto.UINT8, pixels))
    logits.name = "probabilities"
    content: bytes = whole.SerializeToString()
    return content


def _per_channel(fractions: Sequence[float]) -> np.ndarray:
    return (255 * np.asarray(fractions)).astype(np.float32)[:, None, None]


def _require_antialias(model: onnx.ModelProto) -> None:
    (opset,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < ANTIALIAS_OPSET:
        raise InvalidInputError(
            f"opset {opset} has no antialiased resize",
            f"export with --opset {ANTIALIAS_OPSET}, or without --image-size, and resize before",
        )
