"""``deploynas export``: the chosen subnet as ONNX with a manifest."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploynas.cli.console import Json, Quiet, as_precision, print_json, progress, say, warn

if TYPE_CHECKING:
    from deploynas.export.manifest import Quantization


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
    form: Annotated[
        str,
        typer.Option("--format", help="onnx, or tflite and others: a runtime's own, beside it."),
    ] = "onnx",
    precision: Annotated[str | None, typer.Option(help="fp32 or int8; else the search's.")] = None,
    max_accuracy_drop: Annotated[
        str, typer.Option(help="That int8 may lose; sensitive layers stay in float for it.")
    ] = "0.5%",
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="uint8 image in, probabilities out.")
    ] = False,
    image_size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH of the images that the model crops and resizes itself."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Directory of exports.")] = Path("exports"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export the network of a search; parity with PyTorch is proved on real images."""
    from deploynas.device import open_attached
    from deploynas.errors import InvalidInputError
    from deploynas.export.exporter import Form, InModel
    from deploynas.runtimes import of_format
    from deploynas.workflows import exporting
    from deploynas.workflows.chosen import open_run
    from deploynas.workflows.images import data_of

    if precision is not None:
        as_precision(precision)
    run, result = open_run(run, lambda picked: say(f"exporting {picked}", as_json=as_json))
    trained = exporting.open_for_export(run, result, data, as_searched=inherited)
    note = exporting.profile_note(result)
    if note:
        warn(note)
    in_model = None
    if with_preprocessing or image_size:
        in_model = InModel(_size(image_size) if image_size else None)
    precision = precision or result.precision
    runtime = of_format(form)
    if reason := runtime.supports("Conv", precision):
        raise InvalidInputError(f"--format {form}: {reason}", "try --precision fp32")
    is_elsewhere = result.device.name != "cpu"
    device = None
    if is_elsewhere or precision == "int8":
        device = open_attached(result.device, warn)
        if device is None:
            does = "measured" if precision == "int8" else "tried"
            warn(f"not {does}: {result.device.title} is not attached")
    quantize = None
    if precision == "int8":
        from deploynas.check import percentage
        from deploynas.workflows.quantized import Int8

        if trained.batch_norm == "uncalibrated":
            raise InvalidInputError(
                "int8 needs calibrated batch norms", "search again with --calibration-images DIR"
            )
        quantize = Int8(data_of(trained.data, data), percentage(max_accuracy_drop), device)
    folder = output / (name or (run.name if quantize is None else f"{run.name}-int8"))
    with progress(quiet or quantize is None) as on_progress:
        manifest = exporting.export(
            result, trained, folder, Form(opset, quantize, in_model, runtime),
            device if is_elsewhere else None, on_progress,
        )  # fmt: skip
    if manifest.batch_norm == "uncalibrated":
        warn(
            "batch norms are uncalibrated, so that the accuracy is unknown; search again with "
            "--calibration-images DIR"
        )
    if as_json:
        return print_json(
            {
                "path": str(folder),
                "model": str(folder / next(iter(manifest.files))),
                "manifest": str(folder / "manifest.json"),
                "weights": manifest.weights,
                "batch_norm": manifest.batch_norm,
                "accuracy": manifest.accuracy,
                "accuracy_kind": manifest.accuracy_kind,
                "parity_max_abs_diff": manifest.parity_max_abs_diff,
                "precision": precision,
                "opset": manifest.opset,
                "preprocessing_max_abs_diff": manifest.preprocessing_max_abs_diff,
                "quantization": manifest.quantization and manifest.quantization.model_dump(),
                "converted": manifest.converted and manifest.converted.model_dump(),
            }
        )
    say(
        f"{folder / 'model.onnx'} ({manifest.weights} weights): largest difference from PyTorch "
        f"{manifest.parity_max_abs_diff:.1e} on {manifest.parity_num_images} "
        f"{'images' if manifest.parity_images == 'real' else 'images of noise'}"
    )
    if manifest.preprocessing_max_abs_diff is not None:
        preprocessing = manifest.preprocessing
        height, width = preprocessing.image_size or preprocessing.resolution.size
        say(
            f"takes uint8 images of {height} x {width} px and gives probabilities: largest "
            f"difference from preprocessing outside {manifest.preprocessing_max_abs_diff:.1e}"
        )
    if manifest.converted:
        say(
            f"{folder / next(iter(manifest.files))}: {manifest.converted.runtime} differs from it "
            f"by {manifest.converted.difference:.1e} of the outputs' deviation"
        )
    if manifest.quantization:
        for line in _quantized(manifest.quantization, result.device.name):
            say(line)
    say(f"next: deploynas check {folder}")
    return None


def _size(text: str) -> tuple[int, int]:
    from deploynas.errors import InvalidInputError
    from deploynas.spaces import Resolution

    with contextlib.suppress(InvalidInputError):
        if "x" in text:
            return Resolution.of(text).size
    raise InvalidInputError(f"--image-size {text!r} is not HEIGHTxWIDTH, like 480x640")


def _quantized(found: Quantization, device: str) -> list[str]:
    """What INT8 cost and gained, and which file to take."""
    kept = f", with {', '.join(found.float_layers)} in float" if found.float_layers else ""
    lines = [
        f"int8: {found.accuracy_float:.2%} -> {found.accuracy_int8:.2%} on {found.num_images} "
        f"validation images{kept}"
    ]
    if found.ratio is not None:
        says = {True: "take int8", False: "take fp32", None: "equal within the interval"}
        lines.append(
            f"int8 takes {found.ratio:.3f} times as long as float on {device} (95 % interval "
            f"{found.ratio_low:.3f}-{found.ratio_high:.3f}): {says[found.is_faster]}"
        )
    return lines
