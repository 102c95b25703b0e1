"""What a network costs, layer by layer: documents for ``deploynas inspect``.

Nothing here needs torch for an ONNX file, so that a light install can inspect one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploynas.spaces import SearchSpace
    from deploynas.spaces.layers import Node


def inspect_model(
    target: Path, input_shapes: Sequence[str] = (), profile: Path | None = None
) -> dict[str, Any]:
    """Costs of a model's file, or of an export, whose file must agree with its manifest.

    Args:
        target: The file or folder.
        input_shapes: Of inputs that are open: ``1,3,224,224``, or ``NAME=...`` each.
        profile: Adds the latency of a file without a manifest, node by node.

    Raises:
        MissingFileError, InvalidInputError: It is not there, unreadable, or does not agree.
        IncompleteProfileError: The profile holds no operators.
    """
    from deploynas.check.verdict import load_target
    from deploynas.errors import InvalidInputError
    from deploynas.graph.costs import node_costs
    from deploynas.runtimes import of_file

    model, manifest = target, None
    if target.is_dir():
        model = target / "model.onnx"
        if (target / "manifest.json").is_file():
            _, manifest = load_target(target)
    own = of_file(model)
    is_onnx = own.suffix == ".onnx"
    costs, peak_bytes = node_costs(model, input_shapes) if is_onnx else own.costs(model)
    rows = [
        _row(c.name, c.kind, (c.input_shape, c.output_shape), c.macs, c.num_weights,
             c.weight_bytes, c.output_bytes)
        for c in costs
    ]  # fmt: skip
    document = _with_totals(str(model), rows, peak_bytes)
    document["uncounted"] = sorted({c.kind for c in costs if not c.counted})
    document["unknown_shapes"] = sum(c.output_bytes is None for c in costs)
    if manifest is not None:
        stored = sum(c.weight_bytes for c in costs if c.kind not in ("Clip", "Slice"))
        _require_agreement(target, document["macs"], stored, manifest)
        document["params_before_folding"] = manifest.params
    elif profile is not None:
        if not is_onnx:
            raise InvalidInputError(f"{model}: operators are priced in ONNX files")
        document |= _operator_latency(profile, model, input_shapes, rows)
    return document


def _operator_latency(
    path: Path, model: Path, input_shapes: Sequence[str], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Latency of a file that no space built; of each node, added to ``rows``."""
    from deploynas.graph.operators import operators
    from deploynas.profile import DeviceProfile
    from deploynas.profile.operators import OperatorModel

    profile = DeviceProfile.read(path)
    price = OperatorModel(profile).predict(operators(model, input_shapes))
    *nodes, call = price.nodes
    for row, node in zip(rows, nodes, strict=True):
        row |= {
            "latency_ms": node.ms, "latency_share": node.ms / price.ms, "strange": node.is_strange,
        }  # fmt: skip
    return {
        "device": profile.identity.title,
        "predicted_latency_ms": price.ms,
        "prediction_error": price.margin,
        "low_ms": price.low_ms,
        "high_ms": price.high_ms,
        "call_ms": call.ms,
        "strange": [
            {"name": one.name, "kind": one.kind, "latency_ms": one.ms} for one in price.strange
        ],
        "strange_share": price.strange_share,
    }


def _require_agreement(folder: Path, macs: int, stored_bytes: int, manifest: Any) -> None:
    """An export's file, its manifest and its architecture must state the same costs.

    Raises:
        InvalidInputError: They do not; names the cost.
    """
    from deploynas.errors import InvalidInputError
    from deploynas.spaces import recorded_space

    chosen = recorded_space(manifest.space)
    arch = chosen.encode([manifest.architecture])
    for what, said, counted in (
        ("MACs", manifest.macs, macs),
        ("params", manifest.params, int(chosen.params(arch)[0])),
        ("bytes of weights", int(chosen.weight_bytes(arch)[0]), stored_bytes),
    ):
        if said != counted:
            raise InvalidInputError(
                f"{folder}: the manifest says {said:,} {what}, the network has {counted:,}",
                "export it again: deploynas export",
            )


def inspect_layers(
    target: Path, spec: dict[str, Any], resolution: str | None, profile: Path | None
) -> dict[str, Any]:
    """Costs of a run, a manifest, a block list or an architecture, layer by layer.

    Args:
        target: The file, or a run's folder.
        spec: Arguments of the space, for an architecture in dict form.
        resolution: Where the file names none.
        profile: Adds latencies.

    Raises:
        MissingFileError, InvalidInputError, IncompleteProfileError: See their classes.
    """
    from deploynas.spaces import layers

    nodes, chosen, architecture = _read(target, spec, resolution)
    rows = []
    for node in nodes:
        x = node.layer
        output = (1, x.out_channels, x.out_height, x.out_width)
        rows.append(
            _row(
                x.key, x.kind, ((1, x.in_channels, x.height, x.width), output), layers.macs(x),
                layers.params(x), layers.weight_bytes(x),
                layers.FLOAT_BYTES * x.out_channels * x.out_height * x.out_width,
            )
        )  # fmt: skip
    stored = sum(layers.weight_bytes(node.layer) for node in nodes)
    peak = layers.peak_memory_bytes(nodes) - stored
    document = _with_totals(str(target), rows, peak)
    if profile is not None:
        document |= _latency(profile, nodes, rows, chosen, architecture)
    return document


def _read(
    target: Path, spec: dict[str, Any], resolution: str | None
) -> tuple[list[Node], SearchSpace | None, dict[str, Any] | None]:
    """Nodes of what ``target`` describes; its space and architecture where it names them."""
    from deploynas.artifacts import read_json
    from deploynas.errors import InvalidInputError
    from deploynas.export import Manifest
    from deploynas.search import SearchResult
    from deploynas.spaces import Resolution, parse_genotype, parse_net, recorded_space, space

    given = None if resolution is None else Resolution.of(resolution).plain
    path = SearchResult.file_in(target) if target.is_dir() else target
    if path.is_file() and path.read_bytes().lstrip().startswith(b"Genotype("):
        document: Any = parse_genotype(path.read_text())
        spec = {**spec, "name": spec["name"] or "darts"}
        document["resolution"] = given or space(**spec).resolutions[-1].plain
    else:
        document = read_json(path)
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == SearchResult.SCHEMA:
        result = SearchResult.parse(document, path)
        chosen, architecture = recorded_space(result.space), dict(result.best.architecture)
    elif schema == Manifest.SCHEMA:
        manifest = Manifest.parse(document, path)
        chosen, architecture = recorded_space(manifest.space), dict(manifest.architecture)
    elif isinstance(document, dict) and _is_architecture(document, spec["name"]):
        if spec["name"] is None:
            raise InvalidInputError(f"{path} is an architecture", "say of what: --space NAME")
        chosen, architecture = space(**spec), document
        if not {"resolution", "r"} & document.keys():
            sides = [one for one in chosen.resolutions if one == 224]
            architecture = {"resolution": given or (*sides, chosen.resolutions[-1])[0].plain}
            architecture |= document
        one = architecture.get("resolution")
        if isinstance(one, int | str):
            chosen = chosen.with_resolutions([*chosen.resolutions, one])
    else:
        try:
            return parse_net(document, given), None, None
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: {error}") from None
    return chosen.layers(chosen.encode([architecture])[0]), chosen, architecture


def _is_architecture(document: dict[str, Any], space_name: str | None) -> bool:
    """Whether a file is an architecture in dict form; one of any family where a space is named."""
    if "blocks" in document or "net" in document:
        return False
    return space_name is not None or any(k in document for k in ("depths", "ops", "normal", "ks"))


def _latency(
    path: Path,
    nodes: list[Node],
    rows: list[dict[str, Any]],
    chosen: SearchSpace | None,
    architecture: dict[str, Any] | None,
) -> dict[str, Any]:
    """Latency of each layer timed alone, added to ``rows``; of the whole where it is known."""
    from deploynas.errors import IncompleteProfileError
    from deploynas.profile import DeviceProfile, LatencyModel

    profile = DeviceProfile.read(path)
    for node, row in zip(nodes, rows, strict=True):
        try:
            row["latency_ms"] = profile.layer_ms(node.layer)
        except KeyError:
            raise IncompleteProfileError(
                f"{path} lacks the layer {node.layer.key}",
                "inspect without --profile, or profile its space",
            ) from None
    whole = sum(row["latency_ms"] for row in rows)
    for row in rows:
        row["latency_share"] = row["latency_ms"] / whole
    document: dict[str, Any] = {
        "device": profile.identity.title,
        "sum_of_layers_ms": whole,
    }
    if chosen is not None and architecture is not None:
        model = LatencyModel(profile.restrict(chosen), profile)
        document["predicted_latency_ms"] = float(
            model.predict_ms(model.space.encode([architecture]))[0]
        )
        document["prediction_error"] = model.half_width
    return document


def _row(
    name: str,
    kind: str,
    shapes: tuple[Sequence[int] | None, Sequence[int] | None],
    macs: int,
    params: int,
    weight_bytes: int,
    activation_bytes: int | None,
) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "input": None if shapes[0] is None else list(shapes[0]),
        "output": None if shapes[1] is None else list(shapes[1]),
        "macs": macs,
        "params": params,
        "weight_bytes": weight_bytes,
        "activation_bytes": activation_bytes,
    }


def _with_totals(name: str, rows: list[dict[str, Any]], peak_bytes: int | None) -> dict[str, Any]:
    return {
        "target": name,
        "layers": rows,
        "macs": sum(r["macs"] for r in rows),
        "params": sum(r["params"] for r in rows),
        "weight_bytes": sum(r["weight_bytes"] for r in rows),
        "peak_activation_bytes": peak_bytes,
    }
