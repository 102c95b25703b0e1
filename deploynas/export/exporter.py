"""Write the extracted static subnet as ONNX, and prove that it computes the same."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch

import deploynas
from deploynas.artifacts import open_atomic, sha256
from deploynas.data import ImageDataset, normalise
from deploynas.errors import ParityError
from deploynas.export.manifest import Manifest, Preprocessing, Weights
from deploynas.graph import DEFAULT_OPSET, StateWeights, emit
from deploynas.nn import StaticNetwork
from deploynas.search import Candidate, SearchResult

PARITY_IMAGES = 256
PARITY_TOLERANCE = 1e-4


def export_network(
    network: StaticNetwork,
    candidate: Candidate,
    folder: Path,
    *,
    weights: Weights,
    dataset: ImageDataset,
    result: SearchResult,
    opset: int = DEFAULT_OPSET,
) -> Manifest:
    """Write ``model.onnx`` and ``manifest.json`` into ``folder``.

    Args:
        network: The extracted subnet, recalibrated, in eval mode.
        candidate: Its architecture, costs and accuracy.
        folder: Created; files of an earlier export are replaced.
        weights: How they were trained; recorded.
        dataset: Real images for parity; classes and preprocessing.
        result: The search: its space, its budget, and whose its prediction is are recorded.
        opset: ONNX operator set.

    Raises:
        ParityError: The exported file computes something else; nothing is written.
        OutputError: The folder cannot be written.
    """
    resolution = network.nodes[0].layer.height
    preprocessing = Preprocessing(
        resolution=resolution, channels=dataset.channels, mean=dataset.mean, std=dataset.std
    )
    metadata = {
        "classes": json.dumps(dataset.classes),
        "preprocessing": preprocessing.model_dump_json(),
    }
    content = network_bytes(network, opset=opset, metadata=metadata)
    onnx.checker.check_model(content)
    images = dataset.test.images[:PARITY_IMAGES]
    difference = parity(network, content, dataset, images, resolution)
    path = folder / "model.onnx"
    with open_atomic(path) as file:
        file.write(content)
    manifest = Manifest(
        space=result.space,
        architecture=candidate.architecture,
        classes=dataset.classes,
        preprocessing=preprocessing,
        data_fingerprint=dataset.fingerprint,
        data_source=dataset.source,
        opset=opset,
        device=result.device,
        core_ms=result.core_ms,
        memory_ms=result.memory_ms,
        predicted_latency_ms=candidate.predicted_latency_ms,
        prediction_error=candidate.prediction_error,
        latency_budget_ms=result.budget.latency_ms,
        weights=weights,
        accuracy=candidate.accuracy,
        macs=candidate.macs,
        params=candidate.params,
        parity_max_abs_diff=difference,
        parity_num_images=len(images),
        model_sha256=sha256(path),
        versions={
            "deploynas": deploynas.__version__,
            **{
                name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime")
            },
        },
    )
    manifest.write(folder / "manifest.json")
    return manifest


def network_bytes(
    network: StaticNetwork,
    *,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A static network as the bytes of its ONNX file."""
    state = {k: v.detach().cpu().numpy() for k, v in network.state_dict().items()}
    model = emit(network.nodes, StateWeights(state), opset=opset, metadata=metadata)
    content: bytes = model.SerializeToString()
    return content


@torch.no_grad()
def parity(
    network: StaticNetwork,
    content: bytes,
    dataset: ImageDataset,
    images: np.ndarray,
    resolution: int,
) -> float:
    """Largest absolute difference of a logit between PyTorch and ONNX Runtime.

    Raises:
        ParityError: It exceeds the tolerance, or a logit is not finite.
    """
    import onnxruntime

    from deploynas.data import resize

    inputs = normalise(resize(images, resolution), dataset.mean, dataset.std)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    exported = np.concatenate([session.run(None, {"image": x[None]})[0] for x in inputs])
    device = next(network.parameters()).device
    expected = network(torch.from_numpy(inputs).to(device)).cpu().numpy()
    difference = float(np.abs(exported - expected).max())
    if not difference <= PARITY_TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ParityError(
            f"the exported model differs from the network by {difference:.3g} "
            f"(tolerance {PARITY_TOLERANCE:g}): nothing was exported"
        )
    return difference
