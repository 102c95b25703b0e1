"""Export of a network that no space of ours built: any module, with the same manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import deploynas
from deploynas.artifacts import write_together
from deploynas.data import ImageDataset, normalise, resize
from deploynas.device import Identity, Level
from deploynas.errors import ParityError
from deploynas.export.exporter import PARITY_TOLERANCE
from deploynas.export.manifest import ONNX_NAME, Manifest, Preprocessing
from deploynas.export.materials import FILE_NAME as BILL
from deploynas.export.materials import bill_of_materials
from deploynas.export.probe import open_session, probe
from deploynas.nn.adapt.answers import first_output
from deploynas.nn.adapt.files import INPUT, OPSET, onnx_bytes
from deploynas.spaces import Resolution

PARITY_IMAGES = 64


@dataclass(frozen=True)
class Proof:
    """A file that answers as its network does.

    Attributes:
        content: ONNX.
        difference: Largest of an output, over ``num_images`` real images.
        resolution: Of its input.
    """

    content: bytes
    difference: float
    num_images: int
    resolution: Resolution


@dataclass(frozen=True)
class Origin:
    """What a manifest says of a network beside its file and its data.

    Attributes:
        device, level: Where and when it was measured.
        facts: Fields of :class:`~deploynas.export.manifest.Manifest`: space, architecture, costs,
            limits, accuracy, weights.
    """

    device: Identity
    level: Level
    facts: dict[str, Any]


@torch.no_grad()
def proved(network: nn.Module, example: Tensor, dataset: ImageDataset) -> Proof:
    """The file of a network, compared with it on validation images.

    Args:
        network: Put in eval mode and the usual layout.
        example: Its input, of one image.
        dataset: Normalised as it wants it.

    Raises:
        ParityError: It computes something else.
        NotExportedError: See :func:`deploynas.nn.adapt.files.onnx_bytes`.
    """
    network = network.to(memory_format=torch.contiguous_format).eval()
    content = onnx_bytes(network, example)
    resolution = Resolution(int(example.shape[2]), int(example.shape[3]))
    num = min(PARITY_IMAGES, len(dataset.val))
    pixels = dataset.val.batch(np.arange(num), dataset.val.height, dataset.val.width)
    inputs = normalise(resize(pixels, *resolution.size), dataset.mean, dataset.std)
    answers = [first_output(network(torch.from_numpy(x[None]))).numpy() for x in inputs]
    session = open_session(content, "the exported model")
    found = np.concatenate([session.run(None, {INPUT: x[None]})[0] for x in inputs])
    expected = np.concatenate(answers)
    difference = float(np.abs(found - expected).max())
    if not difference <= PARITY_TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ParityError(
            f"the exported model differs from the network by {difference:.3g} (tolerance "
            f"{PARITY_TOLERANCE:g}): nothing was exported"
        )
    return Proof(content, difference, num, resolution)


def write_foreign(proof: Proof, dataset: ImageDataset, origin: Origin, folder: Path) -> Manifest:
    """Write ``model.onnx``, its manifest and its bill of materials.

    Args:
        proof: The file.
        dataset: What it was trained on and judged by.
        origin: What else is said.
        folder: Created.

    Raises:
        OutputError: It cannot be written.
    """
    content = proof.content
    manifest = Manifest.model_validate(
        {
            "classes": dataset.classes,
            "preprocessing": Preprocessing.model_validate(
                {
                    "resolution": proof.resolution, "channels": dataset.channels,
                    "mean": dataset.mean, "std": dataset.std,
                }
            ),
            "data_fingerprint": dataset.fingerprint,
            "data_source": dataset.source,
            "data_size": dataset.size,
            "opset": OPSET,
            "device": origin.device,
            "core_ms": origin.level.core_ms,
            "memory_ms": origin.level.memory_ms,
            "batch_norm": "calibrated",
            "accuracy_kind": "measured",
            "parity_max_abs_diff": proof.difference,
            "parity_num_images": proof.num_images,
            "parity_images": "real",
            "model_sha256": hashlib.sha256(content).hexdigest(),
            "recorded_outputs": tuple(tuple(map(float, x)) for x in probe(content)),
            "versions": {
                "deploynas": deploynas.__version__,
                **{n: importlib.metadata.version(n) for n in ("torch", "onnx", "onnxruntime")},
            },
            **origin.facts,
        }
    )  # fmt: skip
    bill = bill_of_materials(folder.name, manifest, {})
    files = {ONNX_NAME: content, BILL: bill, "manifest.json": manifest.content}
    write_together(folder, files, "manifest.json")
    return manifest
