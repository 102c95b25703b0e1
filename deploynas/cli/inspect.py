"""``deploynas inspect``: what a network costs, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploynas.cli.console import Json, Quiet, print_json, say

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
    resolution: Annotated[
        int | None, typer.Option(help="Of a net.config that names none; 224.")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Every row of a long table.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print MACs, params, memory and, with a profile, latency of every layer."""
    if target.suffix == ".onnx" or (target / "model.onnx").is_file():
        if profile is not None:
            raise typer.BadParameter("a profile prices layers of a space, not an ONNX file")
        document = _inspect_onnx(target)
    else:
        document = _inspect_layers(target, space_name, resolution, profile)
    if as_json:
        return print_json(document)
    _print(document, show_all)
    return None


def _inspect_onnx(target: Path) -> dict[str, Any]:
    from deploynas.errors import InvalidInputError
    from deploynas.export import Manifest
    from deploynas.graph.costs import node_costs

    model = target / "model.onnx" if target.is_dir() else target
    costs, peak_bytes = node_costs(model)
    rows = [
        {
            "name": c.name,
            "kind": c.kind,
            "input": list(c.input_shape),
            "output": list(c.output_shape),
            "macs": c.macs,
            "params": c.num_weights,
            "weight_bytes": c.weight_bytes,
        }
        for c in costs
    ]
    document = _with_totals(str(model), rows, peak_bytes)
    manifest = target / "manifest.json"
    if manifest.is_file():
        stated = Manifest.read(manifest).macs
        if stated != document["macs"]:
            raise InvalidInputError(
                f"{model} has {document['macs']:,} MACs, {manifest} says {stated:,}"
            )
    return document


def _inspect_layers(
    target: Path, space_name: str | None, resolution: int | None, profile: Path | None
) -> dict[str, Any]:
    from deploynas.spaces import layers

    nodes, chosen, architecture = _read(target, space_name, resolution)
    rows = []
    for node in nodes:
        x = node.layer
        rows.append(
            {
                "name": x.key,
                "kind": x.kind,
                "input": [1, x.in_channels, x.height, x.width],
                "output": [1, x.out_channels, x.out_height, x.out_width],
                "macs": layers.macs(x),
                "params": layers.params(x),
                "weight_bytes": layers.weight_bytes(x),
            }
        )
    peak = max(layers.peak_activation_bytes(node.layer) for node in nodes)
    document = _with_totals(str(target), rows, peak)
    if profile is not None:
        document |= _latency(profile, nodes, rows, chosen, architecture)
    return document


def _read(
    target: Path, space_name: str | None, resolution: int | None
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
        spec, architecture = result.space, result.best.architecture
    elif schema == Manifest.SCHEMA:
        manifest = Manifest.parse(document, path)
        spec, architecture = manifest.space, manifest.architecture
    elif isinstance(document, dict) and "depths" in document:
        if space_name is None:
            raise InvalidInputError(f"{path} is an architecture", "say of what: --space NAME")
        spec, architecture = {"name": space_name}, document
    else:
        return parse_net(document, resolution), None, None
    chosen = space(**spec)  # type: ignore[arg-type]
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
    document: dict[str, Any] = {"device": profile.identity.title}
    if chosen is not None and architecture is not None:
        model = LatencyModel(profile.restrict(chosen), profile)
        document["predicted_latency_ms"] = float(
            model.predict_ms(model.space.encode([architecture]))[0]
        )
        document["prediction_error"] = model.half_width
    return document


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
    width = max(len(r["name"]) for r in shown)
    heads = f"{'output':>18}{'MACs':>13}{'params':>11}{'weights, kB':>13}"
    if timed:
        heads += f"{'alone, ms':>11}{'share':>8}"
    say(f"{'layer':{width}}{heads}")
    whole = sum(r.get("latency_ms", 0.0) for r in rows)
    for r in shown:
        output = "x".join(map(str, r["output"]))
        line = (
            f"{r['name']:{width}}{output:>18}{r['macs']:>13,}{r['params']:>11,}"
            f"{r['weight_bytes'] / 1e3:>13,.1f}"
        )
        if timed:
            line += f"{r['latency_ms']:>11.4f}{r['latency_ms'] / whole:>8.1%}"
        say(line)
    if len(shown) < len(rows):
        say(f"... and {len(rows) - len(shown)} more: --all shows them")
    say(
        f"{document['macs'] / 1e6:.2f} M MACs, {document['params'] / 1e6:.3f} M params, weights "
        f"{document['weight_bytes'] / 1e6:.2f} MB, feature maps at most "
        f"{document['peak_activation_bytes'] / 1e6:.2f} MB at once (in the order of the table)"
    )
    if "predicted_latency_ms" in document:
        say(
            f"predicted {document['predicted_latency_ms']:.3f} ms "
            f"+-{document['prediction_error']:.1%} on {document['device']}"
        )
    elif timed:
        say(f"layers alone add up to {whole:.3f} ms on {document['device']}")
