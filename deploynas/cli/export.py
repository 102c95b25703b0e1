"""``deploynas export``: the chosen subnet as ONNX with a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploynas.cli.console import Json, Quiet, print_json, say, warn


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("export")(export)


def export(
    run: Annotated[Path | None, typer.Argument(help="Run of a search; the newest.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the export.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where the data moved to.")] = None,
    inherited: Annotated[
        bool, typer.Option("--inherited", help="The weights of the search, retrained or not.")
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set, for an old runtime; 17.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Directory of exports.")] = Path("exports"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export the network of a search; parity with PyTorch is proved on real images."""
    from deploynas.graph import DEFAULT_OPSET
    from deploynas.workflows import networks

    run, result = networks.open_run(
        run, lambda picked: say(f"exporting {picked}", as_json=as_json)
    )
    trained = networks.open_for_export(run, result, data, as_searched=inherited)
    note = networks.profile_note(result)
    if note:
        warn(note)
    folder = output / (name or run.name)
    manifest = networks.export(result, trained, folder, opset or DEFAULT_OPSET)
    if manifest.batch_norm == "uncalibrated":
        warn(
            "batch norms are uncalibrated, so that the accuracy is unknown; search again with "
            "--calibration-images DIR"
        )
    if as_json:
        return print_json(
            {
                "path": str(folder),
                "model": str(folder / "model.onnx"),
                "manifest": str(folder / "manifest.json"),
                "weights": manifest.weights,
                "batch_norm": manifest.batch_norm,
                "accuracy": manifest.accuracy,
                "accuracy_kind": manifest.accuracy_kind,
                "parity_max_abs_diff": manifest.parity_max_abs_diff,
            }
        )
    say(
        f"{folder / 'model.onnx'} ({manifest.weights} weights): largest difference from PyTorch "
        f"{manifest.parity_max_abs_diff:.1e} on {manifest.parity_num_images} "
        f"{'images' if manifest.parity_images == 'real' else 'images of noise'}"
    )
    say(f"next: deploynas check {folder}")
    return None
