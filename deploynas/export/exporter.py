"""Write the extracted static subnet as ONNX, and prove that it computes the same."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

import deploynas
from deploynas.artifacts import write_together
from deploynas.data import Pixels, framed, normalise, resize
from deploynas.errors import DeploynasError, ParityError
from deploynas.export.formats import in_format
from deploynas.export.manifest import (
    ONNX_NAME,
    BatchNorm,
    Manifest,
    Preprocessing,
    Quantization,
    Weights,
)
from deploynas.export.materials import FILE_NAME as BILL
from deploynas.export.materials import bill_of_materials
from deploynas.export.probe import open_session, probe
from deploynas.graph import DEFAULT_OPSET, StateWeights, emit
from deploynas.graph.preprocess import (
    ANTIALIAS_OPSET,
    centre,
    needs_resize,
    with_preprocessing,
)
from deploynas.nn import StaticNetwork
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.runtime import Runtime
from deploynas.profile import DeviceProfile
from deploynas.search import Candidate, DataRecord, SearchResult
from deploynas.spaces import Node, SearchSpace

PARITY_IMAGES = 256
Quantize = Callable[
    [bytes, Preprocessing, Callable[[str, float], None]], tuple[bytes, Quantization]
]
NOISE_IMAGES = 32
PARITY_TOLERANCE = 1e-4
PIXEL_TOLERANCE = 0.1  # of a probability, where pixels are resized or activations rounded


@dataclass(frozen=True)
class InModel:
    """Preprocessing that becomes part of the model.

    Attributes:
        image_size: Height and width of the images that it crops and resizes; both are left to
            the caller where None.
    """

    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that can be exported.

    Attributes:
        network: In eval mode.
        candidate: Its costs; its accuracy is that of these weights.
        space: Its space, with the classes that it tells apart.
        data: Its classes and its preprocessing.
        images: Some of the data's images, uint8 ``(n, h, w, c)``; none where there are none.
        weights: How they were trained.
        batch_norm: Whether its statistics are its own.
    """

    network: StaticNetwork
    candidate: Candidate
    space: SearchSpace
    data: DataRecord
    images: Pixels
    weights: Weights
    batch_norm: BatchNorm = "calibrated"


@dataclass(frozen=True)
class Form:
    """How a network is written.

    Attributes:
        opset: ONNX operator set; where None, the oldest common one that has what is needed.
        quantize: Makes the file that is written of the float one, whose parity was proved.
        in_model: Makes preprocessing a part of it.
        runtime: Its own format is written as well.
    """

    opset: int | None = None
    quantize: Quantize | None = None
    in_model: InModel | None = None
    runtime: Runtime | None = None


AS_IT_IS = Form()


def export_network(
    trained: TrainedNetwork,
    result: SearchResult,
    folder: Path,
    form: Form = AS_IT_IS,
    *,
    run_on_device: Callable[[Path], None] | None = None,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> Manifest:
    """Write ``model.onnx``, other formats of it and ``manifest.json`` into ``folder``.

    Parity is proved on the network's images, on noise where there are none.

    Args:
        trained: What is written.
        result: The search: its budget, and whose its prediction is, are recorded.
        folder: Created; the files that an earlier export's manifest names are replaced.
        form: How.
        run_on_device: Raises where the device that it is for cannot run the file.
        on_progress: Called with what is going on and its share done.

    Raises:
        InvalidInputError: The runtime here cannot load it.
        ParityError: The exported file computes something else; nothing is written.
        DeviceError: The device cannot run it; nothing is written.
        MissingDependencyError: Of :attr:`Form.runtime`, which is not installed here.
        OutputError: The folder cannot be written.
    """
    network, candidate, data = trained.network, trained.candidate, trained.data
    images, opset, in_model = trained.images, form.opset, form.in_model
    resolution = network.resolution
    preprocessing = Preprocessing(
        resolution=resolution, channels=data.channels,  # type: ignore[arg-type]
        mean=data.mean, std=data.std,
        crop=data.crop, in_model=in_model is not None,
        image_size=in_model.image_size if in_model else None,
    )  # fmt: skip
    if opset is None:
        resizes = needs_resize(resolution, data.crop, preprocessing.image_size)
        opset = ANTIALIAS_OPSET if resizes else DEFAULT_OPSET
    metadata = {
        "classes": json.dumps(data.classes),
        "preprocessing": preprocessing.model_dump_json(),
    }
    content = network_bytes(network, opset=opset, metadata=metadata)
    onnx.checker.check_model(content)
    is_real = len(images) > 0
    if not is_real:
        shape = (NOISE_IMAGES, *resolution.size, data.channels)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    inputs = normalise(resize(images, *resolution.size), data.mean, data.std)
    difference = parity(network, content, inputs)
    path = folder / ONNX_NAME
    manifest = Manifest(
        space=trained.space.spec,  # type: ignore[arg-type]
        architecture=candidate.architecture,
        classes=data.classes,
        preprocessing=preprocessing,
        data_fingerprint=data.fingerprint,
        data_source=data.source,
        data_size=data.size,
        opset=opset,
        device=result.device,
        core_ms=result.core_ms,
        memory_ms=result.memory_ms,
        profile=result.profile,
        drift=result.drift,
        predicted_latency_ms=candidate.predicted_latency_ms,
        prediction_error=candidate.prediction_error,
        latency_budget_ms=result.budget.latency_ms,
        limits={k: v for k, v in result.budget.limits.items() if k != "latency_ms"},
        weights=trained.weights,
        batch_norm=trained.batch_norm,
        accuracy=candidate.accuracy if trained.batch_norm == "calibrated" else None,
        accuracy_kind=candidate.accuracy_kind,
        macs=candidate.macs,
        params=candidate.params,
        parity_max_abs_diff=difference,
        parity_num_images=len(images),
        parity_images="real" if is_real else "noise",
        model_sha256="",
        versions={
            "deploynas": deploynas.__version__,
            **{
                name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime")
            },
        },
    )
    if form.quantize is not None:
        content, quantization = form.quantize(content, preprocessing, on_progress)
        changed: dict[str, object] = {"quantization": quantization}
        if trained.batch_norm == "calibrated":
            changed |= {"accuracy": quantization.accuracy_int8, "accuracy_kind": "measured"}
        manifest = manifest.model_copy(update=changed)
    if (form.quantize is not None) != (result.precision == "int8"):
        manifest = manifest.model_copy(update={"predicted_latency_ms": None})
    if manifest.quantization and manifest.quantization.float_layers:
        predicted = priced_in_parts(manifest, Path(result.profile), network.nodes)
        manifest = manifest.model_copy(update={"predicted_latency_ms": predicted})
    if in_model is not None:
        content, difference = _in_model(content, preprocessing, images, form.quantize is None)
        changed = {"predicted_latency_ms": None, "preprocessing_max_abs_diff": difference}
        manifest = manifest.model_copy(update=changed)
    if run_on_device is not None:
        with temporary_folder() as temporary:
            copy = temporary / path.name
            copy.write_bytes(content)
            run_on_device(copy)
    own: dict[str, bytes] = {}
    if form.runtime is not None and form.runtime.suffix != path.suffix:
        own, converted = in_format(form.runtime, content)
        manifest = manifest.model_copy(update={"converted": converted})
    outputs = tuple(tuple(map(float, x)) for x in probe(content))
    found = {
        "model_sha256": hashlib.sha256(content).hexdigest(), "recorded_outputs": outputs,
    }  # fmt: skip
    manifest = manifest.model_copy(update=found)
    bill = bill_of_materials(folder.name, manifest, result.inputs)
    files = {path.name: content, **own, BILL: bill, "manifest.json": manifest.content}
    _write(folder, files)
    return manifest


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write an export, and remove what the manifest of an earlier one names beyond it."""
    earlier: set[str] = set()
    with contextlib.suppress(DeploynasError):  # there was none, or it cannot be read
        earlier |= Manifest.read(folder / "manifest.json").files.keys()
    write_together(folder, files, "manifest.json")
    for name in earlier - files.keys():
        if name == Path(name).name:
            (folder / name).unlink(missing_ok=True)


def priced_in_parts(manifest: Manifest, profile: Path, nodes: Sequence[Node]) -> float | None:
    """The int8 prediction with the layers that stayed in float priced as float.

    By what each takes alone in either precision; None where the profile does not say.
    """
    assert manifest.quantization is not None
    if manifest.predicted_latency_ms is None or not profile.is_file():
        return None
    table = DeviceProfile.read(profile)
    drift = manifest.drift.factor if manifest.drift else 1.0
    total = manifest.predicted_latency_ms
    for name in manifest.quantization.float_layers:
        layer = nodes[int(name.removeprefix("layers."))].layer
        try:
            total += (table.layer_ms(layer, "fp32") - table.layer_ms(layer, "int8")) * drift
        except KeyError:
            return None
    return total


def _in_model(
    model: bytes, preprocessing: Preprocessing, images: Pixels, is_float: bool
) -> tuple[bytes, float]:
    """The model that preprocesses, and its largest difference of a probability."""
    resolution, mean, std = preprocessing.resolution, preprocessing.mean, preprocessing.std
    size, crop = preprocessing.image_size, preprocessing.crop
    content = with_preprocessing(model, mean, std, crop=crop, image_size=size)
    whole = open_session(content, "the exported model")
    network = open_session(model, "the exported model")
    frames = resize(images, *resolution.size)
    if size is not None:
        box = centre(*size, crop, resolution)
        frames = framed(images, *size, box.top, box.left, box.size)
    differences = []
    for frame, image in zip(frames, images, strict=True):
        found = whole.run(None, {"image": frame[None]})[0]
        pixels = resize(image[None], *box.size) if size else image[None]
        prepared = normalise(resize(pixels, *resolution.size), mean, std)
        logits = network.run(None, {"image": prepared})[0].astype(np.float64)
        expected = np.exp(logits - logits.max())
        differences.append(np.abs(found - expected / expected.sum()).max())
    difference = float(np.max(differences))  # which keeps what is not a number
    is_exact = is_float and not needs_resize(resolution, crop, size)
    limit = PARITY_TOLERANCE if is_exact else PIXEL_TOLERANCE
    if not difference <= limit:
        raise ParityError(
            f"with preprocessing in the model its probabilities differ by {difference:.3g} "
            f"(tolerance {limit:g}): nothing was exported"
        )
    return content, difference


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
def parity(network: StaticNetwork, content: bytes, inputs: np.ndarray) -> float:
    """Largest absolute difference of a logit between PyTorch and ONNX Runtime.

    Args:
        network: In eval mode.
        content: Its ONNX file.
        inputs: Normalised images, float32 ``(n, c, h, w)``.

    Raises:
        ParityError: It exceeds the tolerance, or a logit is not finite.
    """
    session = open_session(content, "the exported model")
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
