"""Measuring models on any device."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploynas.device.base import Device
from deploynas.errors import ModelError
from deploynas.onboard.processor import BUSY_CORES
from deploynas.onboard.timing import Level, Samples, StopRule
from deploynas.runtimes import files_of


@dataclass(frozen=True)
class Progress:
    """What a progress bar needs: the share of the expected work, and how many models are open."""

    done: float
    num_models: int


def measure(
    device: Device,
    models: Mapping[str, Path],
    rule: StopRule,
    *,
    seed: int = 0,
    samples: dict[str, Samples] | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_round: Callable[[int, dict[str, tuple[float, Level]]], None] = lambda session, touches: (
        None
    ),
) -> dict[str, Samples]:
    """Time ``models`` (name -> ONNX file, or one of its runtime's own) on ``device``.

    Args:
        device: Where.
        models: What.
        rule: When to stop. Models that are precise enough leave after ``min_sessions``.
        seed: Of the orders of creation and of touching.
        samples: Filled in place, so that a caller keeps what was measured before an error;
            sessions that are there already count.
        on_progress: Called after every round.
        on_round: Called after every round with its number in the session and name -> (ms,
            level), for journals.

    Raises:
        DeviceError: The device vanished, crashed or cannot run a model (which is named).
    """
    if not models:
        return {}
    samples = {} if samples is None else samples
    for name, path in models.items():
        files = files_of(path)
        samples.setdefault(name, Samples(sum(file.stat().st_size for file in files)))
    busiest = 0.0
    try:
        # closed by whatever leaves this loop, so that no worker goes on
        with contextlib.closing(device.rounds(models, rule, samples, seed)) as rounds:
            for one in rounds:
                on_round(one.number, one.touches)
                on_progress(Progress(one.done, len(one.touches)))
                if not math.isnan(one.others):
                    busiest = max(busiest, one.others)
    except ModelError as error:
        raise _explained(error, models.get(error.model)) from None
    quota = float(device.identity.recorded.get("quota", "inf"))
    if quota < device.identity.threads:
        text = f"its control group stops it beyond {quota:g} cores: times are those of the quota"
        device.notes.add("quota", text)
    if busiest > BUSY_CORES:
        text = f"other programs kept up to {busiest:.1f} cores of the device busy meanwhile"
        device.notes.add("load", text)
    return samples


def _explained(error: ModelError, path: Path | None) -> ModelError:
    """The error with the model's versions, and the opset that the runtime would take."""
    model, hint = error.model, None
    if path is not None:
        model = f"{path.stem}{_versions(path)}"
    if found := re.search(
        r"Current official support for domain ai.onnx is till opset (\d+)", error.reason
    ):
        hint = f"export it again with --opset {found[1]}"
    elif found := re.search(r"max supported IR version: (\d+)", error.reason):
        hint = f"export it again with --opset {_opset_of_format(int(found[1]))}"
    return ModelError(error.runtime, model, error.reason, hint)


def _opset_of_format(ir_version: int) -> int:
    """The newest opset whose oldest file format is no newer than ``ir_version``."""
    from onnx import helper

    fitting = [
        opset
        for (domain, opset), version in helper.OP_SET_ID_VERSION_MAP.items()
        if domain == "ai.onnx" and version <= ir_version
    ]
    return max(fitting)


def _versions(path: Path) -> str:
    """Opset and file format of a model, which a runtime may be too old for."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError):
        return ""
    opsets = ", ".join(f"{o.domain or 'opset'} {o.version}" for o in model.opset_import)
    return f" ({opsets}, file format {model.ir_version})"
