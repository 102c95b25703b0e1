"""What every verb shares: options, output, progress."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from deploynas.data import ImageDataset
    from deploynas.device import Device
    from deploynas.profile.device_profile import Precision

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Threads = Annotated[int, typer.Option(help="Threads inside one operator.")]
RuntimeName = Annotated[
    str | None, typer.Option("--runtime", help="Of a device elsewhere; onnxruntime.")
]
PrecisionName = Annotated[str, typer.Option("--precision", help="fp32 or int8.")]
USUAL_SPACE = "mobile-small"
SpaceName = Annotated[str, typer.Option("--space", help="Search space.")]
Resolutions = Annotated[
    list[str] | None,
    typer.Option("--resolution", metavar="PX|HxW", help="A side, or 96x160; may be repeated."),
]
OnProgress = Callable[[str, float], None]

LOG_SECONDS = 30.0

err = Console(stderr=True)


def say(text: str, *, as_json: bool = False) -> None:
    """A line for people; standard error where standard output carries JSON."""
    typer.echo(text, err=as_json)


def print_json(document: object) -> None:
    """The one JSON document."""
    typer.echo(json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False))


def warn(text: str) -> None:
    """A warning on standard error."""
    line = f"[yellow]warning:[/yellow] {escape(text)}"
    err.print(line, highlight=False, soft_wrap=True)


def open_data(
    data: Path | None,
    *,
    space_name: str = USUAL_SPACE,
    resolutions: Sequence[str] | None = None,
    download: bool = False,
    seed: int = 0,
) -> ImageDataset:
    """The data set of a verb, no larger than its space, or what was asked of it, needs.

    Warnings go to standard error.
    """
    from deploynas.data import load_dataset, native_size_for
    from deploynas.spaces import resolutions_of, space

    asked = resolutions_of(resolutions or ()) or space(space_name).resolutions
    max_size = native_size_for(asked)
    dataset = load_dataset(data, download=download, seed=seed, max_size=max_size)
    for text in dataset.warnings:
        warn(text)
    return dataset


def as_precision(name: str) -> Precision:
    """A precision by name.

    Raises:
        UnknownNameError: There is no such.
    """
    from deploynas.errors import UnknownNameError
    from deploynas.profile.device_profile import PRECISIONS

    for known in PRECISIONS:
        if name == known:
            return known
    raise UnknownNameError("precision", name, PRECISIONS)


def reach(device: Device, name: str, quiet: bool) -> Device:
    """The device ``name``, once it has answered: one elsewhere takes seconds to."""
    from deploynas.device import device_names

    if name not in device_names() and not quiet:
        say(f"asking {name} ...", as_json=True)
    assert device.identity
    return device


def warn_notes(device: Device) -> None:
    """Warn of what a person should know about a measurement."""
    for note in device.notes:
        warn(note)


@contextmanager
def progress(quiet: bool) -> Iterator[OnProgress]:
    """A progress bar with time left on standard error: call with (text, share done).

    Where standard error is a log and no terminal: a line a stage, and one every half minute.
    """
    if quiet:
        yield lambda text, share: None
        return
    if not err.is_terminal:
        yield _log_progress()
        return
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        tasks: dict[str, TaskID] = {}
        last = 0.0

        def on_progress(text: str, share: float) -> None:
            nonlocal last
            stage = text.split(":")[0]
            if stage not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[stage] = bar.add_task(text, total=1.0)
            now = time.monotonic()
            if share >= 1 or now - last > 0.1:
                bar.update(tasks[stage], description=text, completed=share)
                last = now

        yield on_progress


def _log_progress() -> OnProgress:
    stage, printed = "", 0.0

    def on_progress(text: str, share: float) -> None:
        nonlocal stage, printed
        now = time.monotonic()
        if text.split(":")[0] != stage or now - printed > LOG_SECONDS:
            stage, printed = text.split(":")[0], now
            typer.echo(f"{text} ({share:.0%})", err=True)

    return on_progress
