"""``deploynas export``: the chosen subnet as ONNX with a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploynas.cli.console import Json, Quiet, print_json, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("export")(export)


def export(
    run: Annotated[Path | None, typer.Argument(help="Run of a search; the newest.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the export.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where the data moved to.")] = None,
    output: Annotated[Path, typer.Option(help="Directory of exports.")] = Path("exports"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export the network of a search; parity with PyTorch is proved on real images."""
    from deploynas.artifacts import newest
    from deploynas.data import load_dataset
    from deploynas.errors import InvalidInputError
    from deploynas.profile import DeviceProfile
    from deploynas.search import SearchResult
    from deploynas.workflows import steps

    if run is None:
        hint = "make one: deploynas search --latency-ms 10"
        run = newest("*/search.json", Path("runs"), "search result", hint).parent
        say(f"exporting {run}", as_json=as_json)
    result = SearchResult.read(SearchResult.file_in(run))
    where = Path(result.data.source)
    dataset = load_dataset(data or (where if where.exists() else None))
    if dataset.fingerprint != result.data.fingerprint:
        raise InvalidInputError(
            f"the search ran on {result.data.source}, which is not this data", "pass its --data"
        )
    supernet = steps.open_supernet(Path(result.supernet), dataset)
    profile = DeviceProfile.read(Path(next(iter(result.inputs))))
    folder = output / (name or run.name)
    manifest = steps.export(result, result.best, supernet, profile, folder)
    if as_json:
        return print_json(
            {
                "path": str(folder),
                "model": str(folder / "model.onnx"),
                "manifest": str(folder / "manifest.json"),
                "parity_max_abs_diff": manifest.parity_max_abs_diff,
            }
        )
    say(
        f"{folder / 'model.onnx'}: largest difference from PyTorch "
        f"{manifest.parity_max_abs_diff:.1e} on {manifest.parity_num_images} images"
    )
    say(f"next: deploynas check {folder}")
    return None
