"""``deploynas check --on``: one network on several runtimes of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from deploynas.cli.console import print_json, progress, say, warn, warn_notes


def check_on(
    target: Path | None, names: str, threads: int, budget_ms: float | None,
    input_shapes: Sequence[str], as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measure on every device in turn, and say which to take."""
    from deploynas.artifacts import EXPORTS, newest
    from deploynas.check import EXIT_CODES, across
    from deploynas.device import LocalDevice, device_names
    from deploynas.errors import InvalidInputError, MissingDependencyError, UnknownNameError

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if len(set(wanted)) < len(wanted) or len(wanted) < 2:
        raise InvalidInputError(f"--on {names}: name two or more different devices")
    for name in wanted:
        if name not in device_names():
            raise UnknownNameError("device of this machine", name, device_names())
    if target is None:
        hint = "make one: deploynas export"
        target = newest("*/manifest.json", EXPORTS, "export", hint).parent
        say(f"checking {target}", as_json=as_json)
    devices, refused = {}, {}
    for name in wanted:
        try:
            devices[name] = LocalDevice(name, threads)
        except MissingDependencyError as error:
            refused[name] = str(error)
    if not devices:
        raise MissingDependencyError(f"none of {names} is here; {next(iter(refused.values()))}")
    with progress(quiet) as on_progress:
        found = across(
            target, devices, budget_ms=budget_ms, input_shapes=input_shapes,
            on_progress=on_progress,
        )  # fmt: skip
    refused |= found.refused
    for device in devices.values():
        warn_notes(device)
    if as_json:
        print_json(
            {
                "advice": found.advice,
                "verdict": found.verdict,
                "devices": {
                    name: {
                        "device": one.identity.model_dump(),
                        "verdict": one.gate.verdict,
                        "reason": one.gate.reason,
                        "latency_ms": vars(one.latency),
                        "ratio": one.ratio and vars(one.ratio),
                        "parity": one.parity,
                        "file_bytes": one.file_bytes,
                        "load_ms": one.load_ms,
                    }
                    for name, one in found.standings.items()
                },
                "refused": refused,
            }
        )
    else:
        say(f"{'':10} {'ms':>9}  {'95 % interval':15} {'over the fastest':20} "
            f"{'differs':>8} {'MB':>6} {'load ms':>8}")  # fmt: skip
        for name, one in found.standings.items():
            x, r = one.latency, one.ratio
            over = f"{r.median:.2f} ({r.low:.2f}-{r.high:.2f})" if r else "the fastest"
            say(f"{name:10} {x.median:9.3f}  {f'{x.low:.3f}-{x.high:.3f}':15} {over:20} "
                f"{one.parity:8.0e} {one.file_bytes / 1e6:6.2f} {one.load_ms:8.1f}")  # fmt: skip
            if one.gate.verdict != "pass":
                warn(f"{name}: {one.gate.reason}")
        for name, reason in refused.items():
            warn(f"{name}: {reason}")
        say(found.advice)
    raise typer.Exit(EXIT_CODES[found.verdict])
