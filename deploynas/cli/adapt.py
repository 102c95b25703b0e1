"""``deploynas adapt``: a trained network of one's own as a search space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deploynas.cli.console import Json, Quiet, print_json, progress, say

KINDS = {"width": "channels", "depth": "parts that can be left out", "kernel": "kernels"}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("adapt")(adapt)


def adapt(
    model: Annotated[
        str,
        typer.Argument(help="file.py:function, torchvision:NAME or timm:NAME. A file is run."),
    ],
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint in the library's own names; random ones.")
    ] = None,
    resolution: Annotated[
        str, typer.Option(metavar="PX|HxW", help="Of the images that it takes.")
    ] = "224",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what can be chosen, and why the rest stays.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read a trained network: what of it can be narrower, shallower, or of smaller kernels."""
    from deploynas.errors import InvalidInputError
    from deploynas.spaces import Resolution
    from deploynas.workflows.adapt import explained, read_network

    if not explain:
        raise InvalidInputError(
            "networks of one's own are read, and not yet searched",
            f"see what is found in it: deploynas adapt {model} --explain",
        )
    side = Resolution.of(resolution)
    with progress(quiet) as on_progress:
        on_progress("reading the network", 0.0)
        document = explained(read_network(model, weights, side))
        on_progress("reading the network", 1.0)
    if as_json:
        return print_json(document)
    _print(document)
    return None


def _print(document: dict[str, Any]) -> None:
    sides = "x".join(map(str, document["input"]))
    say(
        f"{document['network']}, input {sides}: {document['macs'] / 1e6:,.1f} M MACs, "
        f"{document['params'] / 1e6:,.2f} M parameters; narrowest "
        f"{document['macs_narrowest'] / 1e6:,.1f} M MACs"
    )
    for kind, title in KINDS.items():
        groups = [one for one in document["groups"] if one["kind"] == kind]
        say(f"{title}: {len(groups)}")
        for one in groups:
            options = "" if kind == "depth" else _listed(one["options"])
            say(f"  {one['name']:<48} {options}".rstrip())
    say(f"frozen: {len(document['frozen'])}")
    for one in document["frozen"]:
        say(f"  {one['name']:<48} {one['reason']}")


def _listed(options: list[int]) -> str:
    if len(options) <= 4:
        return ", ".join(map(str, options))
    return f"{options[0]}, {options[1]} ... {options[-1]}"
