"""``deploynas inspect``: what a network costs, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deploynas.cli.console import Json, Quiet, print_json, say, warn

MAX_ROWS = 40


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("inspect")(inspect)


def inspect(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="ARCH_OR_NET_OR_ONNX",
            help="ONNX or .tflite file, export or run, net.config, architecture or genotype.",
        ),
    ],
    profile: Annotated[Path | None, typer.Option(help="Device profile, for latency.")] = None,
    space_name: Annotated[
        str | None, typer.Option("--space", help="Of an architecture in dict form.")
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="With --space.")] = None,
    in_channels: Annotated[int, typer.Option(help="With --space.")] = 3,
    resolution: Annotated[
        str | None,
        typer.Option(metavar="PX|HxW", help="Where the file names none; 224."),
    ] = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="Of an open input: 1,3,224,224 or NAME=1,3,...")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Every row of a long table.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print MACs, params, memory and, with a profile, latency of every layer."""
    from deploynas.graph.model_file import is_model
    from deploynas.runtimes import of_file
    from deploynas.workflows.inspect import inspect_layers, inspect_model

    if profile is not None:
        from deploynas.profile.shipped import locate

        profile = locate(profile)
    manifest = target / "manifest.json"
    is_file = is_model(target) or of_file(target).suffix != ".onnx"
    if is_file or (target / "model.onnx").is_file():
        document = inspect_model(target, input_shape or (), profile=profile)
        if profile is not None and manifest.is_file():
            document = inspect_layers(manifest, {}, None, profile)
    else:
        spec = {"name": space_name, "num_classes": num_classes, "in_channels": in_channels}
        document = inspect_layers(target, spec, resolution, profile)
    if as_json:
        return print_json(document)
    _print(document, show_all)
    return None


def _print(document: dict[str, Any], show_all: bool) -> None:
    rows = document["layers"]
    timed = "latency_ms" in rows[0]
    shown = rows if show_all else rows[:MAX_ROWS]
    shapes = [" > ".join(_shape(r[end]) for end in ("input", "output")) for r in rows]
    width, shape_width = max(len(r["name"]) for r in shown), max(map(len, shapes)) + 2
    heads = f"{'input > output':>{shape_width}}{'MACs':>15}{'params':>13}"
    heads += f"{'weights, kB':>13}{'output, kB':>12}"
    if timed:
        alone = "alone, ms" if "sum_of_layers_ms" in document else "ms"
        heads += f"{alone:>11}{'share':>8}"
    say(f"{'layer':{width}}{heads}")
    for r, shape in zip(shown, shapes, strict=False):
        line = (
            f"{r['name']:{width}}{shape:>{shape_width}}{r['macs']:>15,}{r['params']:>13,}"
            f"{r['weight_bytes'] / 1e3:>13,.1f}{_kilobytes(r['activation_bytes']):>12}"
        )
        if timed:
            line += f"{r['latency_ms']:>11.4f}{r['latency_share']:>8.1%}"
        say(line)
    if len(shown) < len(rows):
        say(f"... and {len(rows) - len(shown)} more: --all shows them")
    peak, most = document["peak_activation_bytes"], ""
    if peak is not None:
        most = f", feature maps at most {peak / 1e6:.2f} MB at once (in the order of the table)"
    say(
        f"{document['macs'] / 1e6:.2f} M MACs, {document['params'] / 1e6:.3f} M params, weights "
        f"{document['weight_bytes'] / 1e6:.2f} MB{most}"
    )
    if "params_before_folding" in document:
        before = document["params_before_folding"] / 1e6
        say(f"{before:.3f} M params before the batch norms were folded; the manifest agrees")
    if document.get("unknown_shapes"):
        warn(f"the shapes of {document['unknown_shapes']} outputs are not known: shown as ?")
    if document.get("uncounted"):
        warn(f"multiply-adds inside these are not counted: {', '.join(document['uncounted'])}")
    if document.get("strange"):
        warn(_strange(document))
    if "predicted_latency_ms" in document:
        say(
            f"predicted {document['predicted_latency_ms']:.3f} ms "
            f"+-{document['prediction_error']:.1%} on {document['device']}"
        )
    if "sum_of_layers_ms" in document:
        say(f"layers timed alone add up to {document['sum_of_layers_ms']:.3f} ms")


def _strange(document: dict[str, Any]) -> str:
    """Nodes that nothing in the profile resembles, and what was made of them."""
    named = [f"{one['name']} ({one['kind']})" for one in document["strange"]]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    share = f"{document['strange_share']:.1%}"
    return (
        f"nothing in the profile resembles {', '.join(named[:3])}{more}: priced as any operator "
        f"of as many multiply-adds and bytes, {share} of the whole, and the error is so much wider"
    )


def _shape(sides: list[int] | None) -> str:
    return "?" if sides is None else "x".join(map(str, sides))


def _kilobytes(num_bytes: int | None) -> str:
    return "?" if num_bytes is None else f"{num_bytes / 1e3:,.1f}"
