"""``deploynas check``: re-measure a model and judge it."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploynas.cli.asked import NoRefresh
from deploynas.cli.check_on import check_on
from deploynas.cli.console import (
    Json,
    Quiet,
    RuntimeName,
    print_json,
    progress,
    reach,
    say,
    warn,
    warn_notes,
)

IMAGENET_PER_CLASS = 10  # images whose accuracy is measured

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploynas.check import Examples, Recipe
    from deploynas.device import Device, Estimate
    from deploynas.export import Manifest
    from deploynas.export.expected import Expected
    from deploynas.onboard.life import LifeRule


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("check")(check)


def check(
    target: Annotated[
        Path | None, typer.Argument(help="ONNX or .tflite file, or export; the newest.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device to measure on; else the manifest's, or the file's runtime's."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads inside one operator; else the manifest's, or 1.", min=1),
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Execution provider.")] = None,
    runtime: RuntimeName = None,
    on: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Devices of this machine in turn: which is fastest?"),
    ] = None,
    latency_ms: Annotated[
        str | None, typer.Option(metavar="MS", help="Budget; else the manifest's.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Model file, export, or record: what it must not be slower than."),
    ] = None,
    max_regression: Annotated[
        str | None,
        typer.Option(help="Slower than the baseline by so much; 5%.", show_default=False),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds after which a comparison is inconclusive; 120.", show_default=False
        ),
    ] = None,
    allow_other_device: Annotated[
        bool, typer.Option("--allow-other-device", help="Of a record: never better than exit 4.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="File that keeps what was measured, as a baseline.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Markdown file, for a pull request.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML file.")] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Of the file: 5MB.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="BYTES", help="That loading and running it may take.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="latency_ms, file_bytes, macs, first_load_ms, call_p99_ms, throughput_per_s: "
            "what flags limit, and more.",
        ),
    ] = None,
    life: Annotated[
        bool,
        typer.Option("--life", help="Measure loading, single calls, memory, throughput as well."),
    ] = False,
    every: Annotated[
        str | None,
        typer.Option(metavar="MS", help="Single calls start so often, as a camera's: 33."),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(help="Processes beside each other, for the throughput; the cores.", min=1),
    ] = None,
    batch: Annotated[int, typer.Option(help="Inputs that a timed call takes.", min=1)] = 1,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="Of a dynamic input: 1,3,224,224 or NAME=1,3,...")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="Real inputs in place of noise: .npy, .npz, or a folder."
        ),
    ] = None,
    no_refresh: NoRefresh = False,
    data: Annotated[Path | None, typer.Option(help="Test images; else the manifest's.")] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Text file: the class of every output of a foreign model, one a line."),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="That a foreign model takes off: 0.485,0.456,0.406; else the data's."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="That it divides by; else the data's.")] = None,
    crop: Annotated[
        float | None, typer.Option(help="Share of the shorter side that it is shown; 1.")
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Fraction, 0 to 1.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure on the device; exit 0 within every limit, 3 beyond one, 4 if it cannot be told."""
    from deploynas.artifacts import EXPORTS, ensure_writable, newest, open_atomic
    from deploynas.check import EXIT_CODES, Baseline, Recipe, markdown, percentage
    from deploynas.check import check as run_check
    from deploynas.check import junit as as_xml
    from deploynas.check.inputs import Given
    from deploynas.check.life import LIVED
    from deploynas.check.limits import limits_from
    from deploynas.check.model_file import open_file
    from deploynas.check.verdict import load_target
    from deploynas.device import open_device, open_same
    from deploynas.errors import InvalidInputError, require_positive
    from deploynas.export.expected import expected_now
    from deploynas.runtimes import by_device, of_file

    flags = {"latency_ms": latency_ms, "file_bytes": max_size, "peak_memory_bytes": max_memory}
    flags["accuracy"] = None if min_accuracy is None else str(min_accuracy)
    limits = limits_from(
        [
            *(f"{name}={value}" for name, value in flags.items() if value is not None),
            *(limit or []),
        ]
    )
    min_accuracy = limits.get("accuracy")
    given = Given(input_shape or (), inputs or (), batch)
    recipe = Recipe.parse(classes, mean, std, crop)
    if baseline is None:
        for option, value in (
            ("--max-regression", max_regression), ("--timeout", timeout),
            ("--allow-other-device", allow_other_device or None),
        ):  # fmt: skip
            if value is not None:
                raise InvalidInputError(f"{option} goes with --baseline")
    if on is not None:
        for option, typed in (
            ("--device", device), ("--runtime", runtime), ("--provider", provider),
            ("--baseline", baseline), ("--record", record), ("--data", data),
            ("--min-accuracy", min_accuracy), ("--summary", summary), ("--junit", junit),
            ("--inputs", inputs), ("--life", life or None), ("--every", every),
            ("--instances", instances), ("--batch", None if batch == 1 else batch),
        ):  # fmt: skip
            if typed is not None:
                raise InvalidInputError(f"--on compares devices by latency: leave out {option}")
        if set(limits) - {"latency_ms"}:
            raise InvalidInputError("--on takes no limit but --latency-ms")
        return check_on(
            target, on, threads or 1, limits.get("latency_ms"), input_shape or (), as_json, quiet
        )
    seconds = require_positive(120.0 if timeout is None else timeout, "--timeout")
    against = None
    if baseline is not None:
        of_export = load_target(baseline)[0] if baseline.is_dir() else baseline
        against = Baseline(
            of_export, percentage(max_regression or "5%"), seconds, allow_other_device
        )
    for written in (record, summary, junit):
        if written is not None:
            ensure_writable(written.parent)
    if target is None:
        hint = "make one: deploynas export"
        target = newest("*/manifest.json", EXPORTS, "export", hint).parent
        say(f"checking {target}", as_json=as_json)
    file, manifest = load_target(target)
    read = _files_of(target)
    if baseline is not None and baseline.suffix != ".json":  # a record may be measured anew
        read |= _files_of(baseline)
    for written in (record, summary, junit):
        if written is not None and written.resolve() in read:
            raise InvalidInputError(
                f"{written} is a file that is checked", "write to another file"
            )
    examples: Examples | None = None
    if not recipe.is_empty and (manifest is not None or data is None):
        why = "need --data" if manifest is None else "are those of the export's manifest"
        raise InvalidInputError(f"--classes, --mean, --std and --crop {why}")
    if data is not None and manifest is None:
        examples = _foreign_examples(data, file, open_file(file).shapes(input_shape or ()), recipe)
    elif data is not None and manifest is not None:
        examples = _examples(data, manifest)
    elif manifest is not None:
        examples = _own_examples(manifest)
        if examples is None:
            warn(f"accuracy not measured: {manifest.data_source} is not here; pass --data")
    if min_accuracy is not None and examples is None:
        raise InvalidInputError("--min-accuracy needs test images", "pass --data")
    own = of_file(file)
    of_runtime = f"{own.name} " if own.suffix != ".onnx" else ""
    is_own = manifest is not None and manifest.device.runtime.startswith(of_runtime)
    if manifest and is_own and device in (None, manifest.device.name) and runtime is None:
        device = manifest.device.name
        target_device = open_same(manifest.device, threads, provider)
    else:
        device = device or next(iter(own.devices))
        if "," in device and not device.startswith("exec:"):
            raise InvalidInputError("a fleet shares a profile's work; check on one of its devices")
        if device not in by_device():  # elsewhere it runs what the file is of
            runtime = runtime or own.name
        target_device = open_device(device, threads or 1, provider, runtime)
    reach(target_device, device, quiet)
    expected: Expected | None = None
    asked = _life_rule(life or LIVED.keys() & limits.keys(), every, instances, target_device)
    with progress(quiet) as on_progress:
        if manifest is not None and against is None and batch == 1 and not no_refresh:
            expected = expected_now(manifest, target_device, on_progress)
        result = run_check(
            target, target_device, limits=limits, baseline=against, examples=examples,
            given=given, life=asked, on_progress=on_progress,
        )  # fmt: skip
    warn_notes(target_device)
    if record is not None:
        result.record.write(record)
    title = target_device.identity.title
    for written, text in (
        (summary, markdown(target, title, result)),
        (junit, as_xml(target, result)),
    ):
        if written is not None:
            with open_atomic(written) as out:
                out.write(text.encode())
    if as_json:
        document: dict[str, object] = {
            "verdict": result.verdict,
            "reason": result.reason,
            "gates": [vars(gate) for gate in result.gates],
            "latency_ms": _estimate(result.latency),
            "budget_ms": result.budget_ms,
            "device": target_device.identity.model_dump(),
            "unstable": result.latency.unstable,
            "notes": list(target_device.notes),
        }
        if result.latency_normalised:
            document["latency_ms_normalised"] = _estimate(result.latency_normalised)
        if result.manifest:
            document["predicted_latency_ms"] = result.manifest.predicted_latency_ms
            document["prediction_error"] = result.manifest.prediction_error
        if expected:
            document["expected_latency_ms"] = expected.latency_ms
            document["expected_error"] = expected.error
            document["drift"] = expected.drift.model_dump()
        if result.accuracy is not None:
            document["accuracy"] = result.accuracy
            document["preprocessing"] = examples.told if examples else ""
        if result.regression:
            document["ratio"] = _estimate(result.regression.ratio)
            document["looks"] = [
                {"sessions": x.sessions, "confidence": x.confidence, **_estimate(x.ratio)}
                for x in result.regression.looks
            ]
            document["slower_layers"] = [vars(layer) for layer in result.regression.slower]
        if result.taken:
            document["taken"] = dict(result.taken)
        document["elsewhere"] = dict(result.elsewhere)
        if result.life is not None:
            document["life"] = result.life.document
        if result.taken.get("peak_memory_bytes") is not None:
            document["peak_bytes"] = result.taken["peak_memory_bytes"]
        print_json(document)
    else:
        x = result.latency
        say(target_device.identity.title)
        of_batch = f" a batch of {batch}" if batch > 1 else ""
        say(
            f"measured {x.median:.3f} ms{of_batch} (95 % interval {x.low:.3f}-{x.high:.3f}, "
            f"{x.num_samples} samples{', unstable' if x.unstable else ''})"
        )
        if expected:
            say(expected.drift.words)
            if expected.again:
                say(f"that is more than a machine drifts: profile it again, {expected.again}")
            say(
                f"predicted {expected.latency_ms:.3f} ms +-{expected.error:.1%} as the machine is "
                f"now: off by {x.median / expected.latency_ms - 1:+.1%}"
            )
        elif result.latency_normalised and result.manifest:
            y, m = result.latency_normalised, result.manifest
            text = f"at the prediction's clock speed {y.median:.3f} ms"
            if m.predicted_latency_ms is not None:
                text += (
                    f"; predicted {m.predicted_latency_ms:.3f} ms +-{m.prediction_error:.1%}: "
                    f"off by {y.median / m.predicted_latency_ms - 1:+.1%}"
                )
            say(text)
        for line in result.life.lines if result.life else ():
            say(line)
        for difference in result.differences:
            say(f"not the profile's device, so not compared with the prediction: {difference}")
        if result.regression:
            say(f"baseline: {result.regression.reason}")
            for layer in result.regression.slower:
                say(f"  {layer.words}")
        if result.accuracy is not None:
            say(f"test accuracy of the file {result.accuracy:.2%}")
            say(f"images: {examples.told}" if examples else "")
        for name, most in result.elsewhere.items():
            command = f"deploynas check {shlex.quote(str(target))} --latency-ms {most:g}"
            where = name.rpartition(".")[0]
            say(f"searched under {name} {most:g} too; judge it there: {command} --device {where}")
        say(f"{result.verdict}: {result.reason}")
    raise typer.Exit(EXIT_CODES[result.verdict])


def _life_rule(
    wanted: object, every: str | None, instances: int | None, device: Device
) -> LifeRule | None:
    """How calls are lived, where anything asks for that.

    Throughput, where nothing is said of it, is that of as many processes as its cores hold.
    """
    from deploynas.check.life import Call
    from deploynas.onboard.life import LifeRule

    if not (wanted or every or instances):
        return None
    identity = device.identity
    facts = identity.recorded
    cores = min(int(facts.get("cores", "1")), int(float(facts.get("quota", "1e9"))))
    return LifeRule(
        every_ms=0.0 if every is None else Call.parse(every, "--every"),
        instances=instances or max(1, cores // identity.threads),
    )


def _files_of(target: Path) -> set[Path]:
    """All the files of a model or an export."""
    from deploynas.check.model_file import open_file
    from deploynas.check.verdict import load_target

    file, manifest = load_target(target)
    named = [target / name for name in ("manifest.json", *manifest.files)] if manifest else []
    return {path.resolve() for path in (file, *open_file(file).external, *named)}


def _foreign_examples(
    data: Path, model: Path, shapes: Mapping[str, Sequence[int]], recipe: Recipe
) -> Examples:
    """Test images of ``data``, no smaller than the model's, prepared as somebody says."""
    from deploynas.check import Examples
    from deploynas.check.accuracy import ImageInput
    from deploynas.data import load_dataset, native_size_for
    from deploynas.spaces import Resolution

    image = ImageInput.of(model, shapes)
    share = recipe.crop or 1.0
    size = Resolution(round(image.height / share), round(image.width / share))
    dataset = load_dataset(data, max_size=native_size_for([size]))
    for text in dataset.warnings:
        warn(text)
    return Examples.of(dataset.with_channels(image.channels), None, recipe)


def _examples(data: Path, manifest: Manifest) -> Examples:
    """Test images of ``data``, prepared as the export says."""
    from deploynas.check import Examples
    from deploynas.data import Split, load_dataset, native_size_for
    from deploynas.data.imagenet import CROP, load_imagenet

    if manifest.weights == "published":
        preprocessing = manifest.preprocessing
        split = Split(*load_imagenet(data, preprocessing.resolution.height, IMAGENET_PER_CLASS))
        num_classes = len(manifest.classes)
        return Examples(
            split, preprocessing.mean, preprocessing.std, num_classes,
            told=f"ImageNet's, the centre {CROP:.1%} kept, as the weights expect",
        )  # fmt: skip
    sizes = [manifest.data_size, *(manifest.preprocessing.image_size or ())]
    dataset = load_dataset(data, max_size=native_size_for(sizes))
    for text in dataset.warnings:
        warn(text)
    return Examples.of(dataset, manifest)


def _own_examples(manifest: Manifest) -> Examples | None:
    """The test images of the data that an export was trained on, where they are here."""
    from deploynas.check import Examples
    from deploynas.data import load_dataset, native_size_for
    from deploynas.errors import DeploynasError

    where = Path(manifest.data_source)
    with contextlib.suppress(DeploynasError):  # a board has no data: latency still counts
        size = native_size_for([manifest.data_size])
        dataset = load_dataset(where if where.exists() else None, max_size=size)
        if dataset.fingerprint == manifest.data_fingerprint:
            return Examples.of(dataset, manifest)
    return None


def _estimate(estimate: Estimate) -> dict[str, float | int]:
    return {
        "median": estimate.median,
        "low": estimate.low,
        "high": estimate.high,
        "num_samples": estimate.num_samples,
    }
