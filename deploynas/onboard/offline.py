"""Runs a bundle: ``python3 BUNDLE [RESULTS]`` on a device that only a person can reach.

Writes what it measures line by line, goes on where it was when it is run again, and closes the
file with a digest of all before, so that what was cut or edited is seen.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploynas.errors import DeviceError
from deploynas.onboard.agent import commands, described
from deploynas.onboard.folders import own, sweep
from deploynas.onboard.parts import ModelFolder
from deploynas.onboard.processor import BUSY_CORES
from deploynas.onboard.timing import Level, Samples, StopRule, run_rounds

SAY_SECONDS = 5.0


def main(folder: Path, results: Path) -> None:
    """Measure what the plan in ``folder``, the unpacked bundle, asks for into ``results``."""
    try:
        sweep(folder.parent)
        with own(folder):
            _run(folder, results)
    except KeyboardInterrupt:
        sys.exit("stopped; run it again, it goes on")
    except (DeviceError, ValueError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or results}: {error.strerror}")
    print(f"done: take {results} back, and there: deploynas profile --import {results.name}")


def _run(folder: Path, results: Path) -> None:
    text = (folder / "plan.json").read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    if (folder / "plan.sha256").read_text() != digest:
        raise ValueError("the bundle's plan was changed after it was made")
    plan: dict[str, Any] = json.loads(text)
    workers = commands(plan, folder)
    facts = described(workers(0), plan["runtime"])
    about = (
        "space", "precision", "runtime", "provider", "threads", "budget_minutes", "soft_seconds",
    )  # fmt: skip
    first = {"plan": digest, "identity": facts, **{name: plan[name] for name in about}}
    models = ModelFolder(folder)
    try:
        for name, (files, parts) in plan["models"].items():
            models.put(name, files, parts, (folder / "models" / name).read_bytes())
    except (ValueError, OSError):
        raise ValueError("the bundle's models were changed after it was made") from None
    lines = _so_far(results)
    if lines and lines[0].get("plan") != digest:
        raise ValueError(f"{results} holds something else: name another file")
    if lines and _kind(lines[0]["identity"]) != _kind(facts):
        raise ValueError(f"{results} was begun on another device or runtime: name another file")
    if lines and "end" in lines[-1]:
        return
    samples: dict[str, Samples] = {}
    try:
        for line in lines[1:]:
            one = line["round"]
            for name, (ms, level) in one["touches"].items():
                samples.setdefault(name, Samples(0)).add(one["number"] == 0, ms, Level(**level))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise ValueError(f"{results} is damaged: name another file") from None
    with results.open("a") as out:

        def write(entry: dict[str, Any]) -> None:
            out.write(json.dumps(entry) + "\n")
            out.flush()

        if not lines:
            write(first)
        runtime = str(facts["runtime"])
        for job in plan["jobs"]:
            names = job["models"]
            own = {name: samples.get(name, Samples(0)) for name in names}
            for name in names:
                own[name].model_bytes = job["bytes"][name]
            said = 0.0
            for one in run_rounds(
                workers,
                runtime,
                [models.path(reference) for reference in plan["references"]],
                {name: models.path(names[name]) for name in names},
                StopRule(**job["rule"]),
                own,
                0,
            ):
                write({"round": asdict(one)})
                if time.monotonic() - said > SAY_SECONDS:
                    said = time.monotonic()
                    busy = f"; other programs keep {one.others:.1f} cores busy"
                    busy = busy if one.others > BUSY_CORES else ""
                    print(f"{job['title']}: {one.done:.0%}{busy}", file=sys.stderr)
        out.flush()
        content = results.read_bytes()
        write({"end": hashlib.sha256(content).hexdigest()})


def _kind(facts: dict[str, Any]) -> tuple[object, ...]:
    """What must not change between two runs: samples of two devices never mix."""
    return facts.get("processor"), facts.get("runtime")


def _so_far(results: Path) -> list[dict[str, Any]]:
    """The lines of an interrupted run; a last one that was cut is dropped from the file."""
    if not results.exists():
        return []
    content = results.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError
        if lines and not ("plan" in lines[0] and "identity" in lines[0]):
            raise ValueError
        if not all("round" in line for line in lines[1:-1]):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{results} holds something else: name another file") from None
    if len(whole) < len(content):
        results.write_bytes(whole)
    return lines
