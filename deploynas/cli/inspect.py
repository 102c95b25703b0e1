"""``deploynas inspect``: what a network costs, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploynas.cli.console import Json, Quiet, print_json, say, warn

if TYPE_CHECKING:
    from deploynas.spaces import MobileSpace
    from deploynas.spaces.layers import Node

MAX_ROWS = 40


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("inspect")(inspect)


def inspect(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="ARCH_OR_NET_OR_ONNX",
            help="ONNX file, export or run folder, published net.config, or an architecture.",
        ),
    ],
    profile: Annotated[Path | None, typer.Option(help="Device profile, for latency.")] = None,
    space_name: Annotated[
        str | None, typer.Option("--space", help="Of an architecture in dict form.")
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="With --space.")] = None,
    in_channels: Annotated[int, typer.Option(help="With --space.")] = 3,
    resolution: Annotated[
        int | None, typer.Option(help="Where the file names none; 224.", min=8)
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Every row of a long table.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print MACs, params, memory and, with a profile, latency of every layer."""
    manifest = target / "manifest.json"
    if target.suffix == ".onnx" or (target / "model.onnx").is_file():
        document = _inspect_onnx(target)
        if profile is not None:
            if not manifest.is_file():
                raise typer.BadParameter("a profile prices layers of a space, not an ONNX file")
            document = _inspect_layers(manifest, {}, None, profile)
    else:
        spec = {"name": space_name, "num_classes": num_classes, "in_channels": in_channels}
        document = _inspect_layers(target, spec, resolution, profile)
    if as_json:
        return print_json(document)
    _print(document, show_all)
    return None


def _inspect_onnx(target: Path) -> dict[str, Any]:
    from deploynas.check.verdict import load_target
    from deploynas.graph.costs import node_costs

    model, manifest = target, None
    if target.is_dir():
        model = target / "model.onnx"
        if (target / "manifest.json").is_file():
            model, manifest = load_target(target)
    costs, peak_bytes = node_costs(model)
    rows = [
        _row(c.name, c.kind, (c.input_shape, c.output_shape), c.macs, c.num_weights,
             c.weight_bytes, c.output_bytes)
        for c in costs
    ]  # fmt: skip
    document = _with_totals(str(model), rows, peak_bytes)
    document["uncounted"] = sorted({c.kind for c in costs if not c.counted})
    if manifest is not None:
        stored = sum(c.weight_bytes for c in costs if c.kind != "Clip")
        _require_agreement(target, document["macs"], stored, manifest)
        document["params_before_folding"] = manifest.params
    return document


def _require_agreement(folder: Path, macs: int, stored_bytes: int, manifest: Any) -> None:
    """An export's file, its manifest and its architecture must state the same costs.

    Raises:
        InvalidInputError: They do not; names the cost.
    """
    from deploynas.errors import InvalidInputError
    from deploynas.spaces import space

    chosen = space(**manifest.space)
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


def _inspect_layers(
    target: Path, spec: dict[str, Any], resolution: int | None, profile: Path | None
) -> dict[str, Any]:
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
    peak = max(layers.peak_activation_bytes(node.layer) for node in nodes)
    document = _with_totals(str(target), rows, peak)
    if profile is not None:
        document |= _latency(profile, nodes, rows, chosen, architecture)
    return document


def _read(
    target: Path, spec: dict[str, Any], resolution: int | None
) -> tuple[list[Node], MobileSpace | None, dict[str, Any] | None]:
    """Nodes of what ``target`` describes; its space and architecture where it names them."""
    from deploynas.artifacts import read_json
    from deploynas.errors import InvalidInputError
    from deploynas.export import Manifest
    from deploynas.search import SearchResult
    from deploynas.spaces import parse_net, space

    path = SearchResult.file_in(target) if target.is_dir() else target
    document = read_json(path)
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == SearchResult.SCHEMA:
        result = SearchResult.parse(document, path)
        chosen, architecture = space(**result.space), dict(result.best.architecture)  # type: ignore[arg-type]
    elif schema == Manifest.SCHEMA:
        manifest = Manifest.parse(document, path)
        chosen, architecture = space(**manifest.space), dict(manifest.architecture)  # type: ignore[arg-type]
    elif isinstance(document, dict) and "depths" in document:
        if spec["name"] is None:
            raise InvalidInputError(f"{path} is an architecture", "say of what: --space NAME")
        chosen, architecture = space(**spec), document
        if resolution is not None:
            architecture = {"resolution": resolution, **document}
        side = architecture.get("resolution")
        if isinstance(side, int):
            chosen = chosen.with_resolutions([*chosen.resolutions, side])
    else:
        try:
            return parse_net(document, resolution), None, None
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: {error}") from None
    return chosen.layers(chosen.encode([architecture])[0]), chosen, architecture


def _latency(
    path: Path,
    nodes: list[Node],
    rows: list[dict[str, Any]],
    chosen: MobileSpace | None,
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
    shapes: tuple[Sequence[int], Sequence[int]],
    macs: int,
    params: int,
    weight_bytes: int,
    activation_bytes: int,
) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "input": list(shapes[0]),
        "output": list(shapes[1]),
        "macs": macs,
        "params": params,
        "weight_bytes": weight_bytes,
        "activation_bytes": activation_bytes,
    }


def _with_totals(name: str, rows: list[dict[str, Any]], peak_bytes: int) -> dict[str, Any]:
    return {
        "target": name,
        "layers": rows,
        "macs": sum(r["macs"] for r in rows),
        "params": sum(r["params"] for r in rows),
        "weight_bytes": sum(r["weight_bytes"] for r in rows),
        "peak_activation_bytes": peak_bytes,
    }


def _print(document: dict[str, Any], show_all: bool) -> None:
    rows = document["layers"]
    timed = "latency_ms" in rows[0]
    shown = rows if show_all else rows[:MAX_ROWS]
    shapes = [" > ".join("x".join(map(str, r[end])) for end in ("input", "output")) for r in rows]
    width, shape_width = max(len(r["name"]) for r in shown), max(map(len, shapes)) + 2
    heads = f"{'input > output':>{shape_width}}{'MACs':>13}{'params':>11}"
    heads += f"{'weights, kB':>13}{'output, kB':>12}"
    if timed:
        heads += f"{'alone, ms':>11}{'share':>8}"
    say(f"{'layer':{width}}{heads}")
    for r, shape in zip(shown, shapes, strict=False):
        line = (
            f"{r['name']:{width}}{shape:>{shape_width}}{r['macs']:>13,}{r['params']:>11,}"
            f"{r['weight_bytes'] / 1e3:>13,.1f}{r['activation_bytes'] / 1e3:>12,.1f}"
        )
        if timed:
            line += f"{r['latency_ms']:>11.4f}{r['latency_share']:>8.1%}"
        say(line)
    if len(shown) < len(rows):
        say(f"... and {len(rows) - len(shown)} more: --all shows them")
    say(
        f"{document['macs'] / 1e6:.2f} M MACs, {document['params'] / 1e6:.3f} M params, weights "
        f"{document['weight_bytes'] / 1e6:.2f} MB, feature maps at most "
        f"{document['peak_activation_bytes'] / 1e6:.2f} MB at once (run in the order of the table)"
    )
    if "params_before_folding" in document:
        before = document["params_before_folding"] / 1e6
        say(f"{before:.3f} M params before the batch norms were folded; the manifest agrees")
    if document.get("uncounted"):
        warn(f"multiply-adds inside these are not counted: {', '.join(document['uncounted'])}")
    if "predicted_latency_ms" in document:
        say(
            f"predicted {document['predicted_latency_ms']:.3f} ms "
            f"+-{document['prediction_error']:.1%} on {document['device']}"
        )
    if timed:
        say(f"layers timed alone add up to {document['sum_of_layers_ms']:.3f} ms")
