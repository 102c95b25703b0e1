"""``deploynas demo``: the whole chain on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploynas.cli.console import Json, Quiet, open_data, print_json, progress, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("demo")(demo)


def demo(
    data: Annotated[Path | None, typer.Option(help="Image folder or IDX files.")] = None,
    download: Annotated[bool, typer.Option(help="Fashion-MNIST, where it is not here.")] = False,
    minutes: Annotated[
        float, typer.Option(help="It trains and searches as much as fits into them.")
    ] = 8.0,
    epochs: Annotated[
        float | None,
        typer.Option(help="Of the supernet; as many as fit.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Profile this machine, train, search, export and check, and compare five networks."""
    from deploynas.workflows.demo import run_demo

    def note(text: str) -> None:
        if not quiet:
            say(text, as_json=True)

    dataset = open_data(data, download=download, seed=seed)
    with progress(quiet) as on_progress:
        table = run_demo(
            dataset, minutes=minutes, epochs=epochs, seed=seed, on_progress=on_progress,
            on_note=note,
        )  # fmt: skip
    if as_json:
        return print_json(table.document())
    for line in table.lines():
        say(line)
    return None
