"""What several verbs ask for: limits, options as NAME=VALUE, profiles with their devices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploynas.cli.console import warn

if TYPE_CHECKING:
    from deploynas.device import Device
    from deploynas.search import Budget
    from deploynas.workflows.target import Target

LatencyMs = Annotated[str | None, typer.Option(metavar="MS", help="Latency limit.")]
MaxFlops = Annotated[str | None, typer.Option(metavar="N", help="MACs of one image: 300M.")]
MaxParams = Annotated[str | None, typer.Option(metavar="N", help="Parameters.")]
MaxMemory = Annotated[str | None, typer.Option(metavar="BYTES", help="Peak memory: 2MB.")]
Limits = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="NAME=VALUE", help="Any cost: web.latency_ms=25, macs=300M."),
]
Profiles = Annotated[
    list[str] | None,
    typer.Option("--profile", metavar="[NAME=]FILE", help="Device profile; NAME= a second one."),
]
RecipeSet = Annotated[
    list[str] | None,
    typer.Option("--recipe-set", metavar="NAME=VALUE", help="Field of the training recipe."),
]
RecipeName = Annotated[
    str, typer.Option("--recipe", metavar="NAME", help="Of trainings: small, standard, strong.")
]
Evaluator = Annotated[
    str, typer.Option(metavar="HOW", help="Judges: inherited weights, training, halving.")
]
NumWorkers = Annotated[
    int, typer.Option("--workers", metavar="N", help="Networks at a time.", min=1)
]
ExecutorName = Annotated[
    str, typer.Option("--executor", metavar="NAME", help="Where workers are.")
]

NoRefresh = Annotated[
    bool, typer.Option("--no-refresh", help="Measure nothing of the profile again: wider bounds.")
]


def budget_of(
    latency_ms: str | None,
    max_flops: str | None,
    max_params: str | None,
    max_memory: str | None,
    limits: Iterable[str] | None,
) -> Budget:
    """The limits of a command line.

    Raises:
        typer.BadParameter: None was given.
        UnknownNameError, InvalidInputError: See :func:`budget_from`.
    """
    from deploynas.search.budget import budget_from

    flags = {
        "latency_ms": latency_ms, "macs": max_flops, "params": max_params,
        "peak_memory_bytes": max_memory,
    }  # fmt: skip
    typed = [f"{name}={value}" for name, value in flags.items() if value is not None]
    budget = budget_from([*typed, *(limits or [])])
    if not budget.limits:
        raise typer.BadParameter("give a budget, for example --latency-ms 10")
    return budget


def pairs(texts: Iterable[str] | None, flag: str) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary.

    Raises:
        InvalidInputError: One is none, or a name is given twice.
    """
    from deploynas.errors import InvalidInputError

    found: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise InvalidInputError(f"{flag} is NAME=VALUE, got {text!r}")
        if name in found:
            raise InvalidInputError(f"{flag} {name} is given twice")
        found[name] = value.strip()
    return found


def recipe_changes(name: str, texts: Iterable[str] | None) -> dict[str, str]:
    """``--recipe`` and ``--recipe-set``: field -> text.

    Raises:
        UnknownNameError, InvalidInputError: See :func:`pairs` and :func:`changes_of`.
    """
    from deploynas.workflows.named_recipes import changes_of

    return changes_of(name, pairs(texts, "--recipe-set"))


def target_of(
    profiles: Iterable[str] | None,
    precision_name: str,
    hint: str,
    note: Callable[[str], None],
    *,
    refreshes: bool = True,
) -> Target:
    """The profiles of a command line, each with its device where that is attached.

    Args:
        profiles: ``FILE``, or ``NAME=FILE`` of a further device; the newest where there are none.
        precision_name: Of the latencies.
        hint: What to type where there is no profile.
        note: Told which.
        refreshes: As in :class:`Target`.

    Raises:
        InvalidInputError: Two profiles have one name.
        MissingFileError: There is none.
    """
    from dataclasses import replace

    from deploynas.artifacts import PROFILES, newest
    from deploynas.cli.console import as_precision
    from deploynas.errors import InvalidInputError
    from deploynas.profile.shipped import locate
    from deploynas.train.distributed import is_first
    from deploynas.workflows.target import Target

    precision = as_precision(precision_name)
    named: dict[str, str] = {}
    for text in profiles or []:
        match = re.fullmatch(r"(\w+)=(.+)", text)
        name, path = (match[1], match[2]) if match else ("", text)
        if name in named:
            raise InvalidInputError(
                "two profiles have no name" if not name else f"two profiles are named {name}",
                "the first is --profile FILE, others are --profile NAME=FILE, of a name of "
                "letters, digits and _",
            )
        named[name] = path

    def opened(path: Path) -> Target:
        from deploynas.device import open_attached
        from deploynas.profile import DeviceProfile

        identity = DeviceProfile.read(path).identity
        note(f"profile {path}: {identity.title}")
        if "reached" in identity.recorded:
            note(f"asking {identity.name} ...")
        device: Device | None = open_attached(identity, warn) if is_first() else None
        return Target(path, device, precision, refreshes=refreshes)

    first = named.pop("", None)
    path = Path(first) if first else newest("*.json", PROFILES, "device profile", hint)
    others: Mapping[str, Target] = {k: opened(locate(Path(p))) for k, p in named.items()}
    return replace(opened(locate(path)), others=others)


def devices_of(target: Target) -> list[Device]:
    """Those that are attached."""
    every = [target, *target.others.values()]
    return [one.device for one in every if one.device is not None]
