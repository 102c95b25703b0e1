"""What ``export`` writes of a run: the retrained network where there is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from deploynas.artifacts import exists, sha256
from deploynas.device import Device, StopRule, measure
from deploynas.export.exporter import AS_IT_IS, Form, TrainedNetwork, export_network
from deploynas.export.manifest import Manifest
from deploynas.search import SearchResult
from deploynas.workflows.chosen import inherited, open_saved
from deploynas.workflows.images import open_data
from deploynas.workflows.retraining import RetrainRecord, open_retrained
from deploynas.workflows.supernets import open_supernet

ONE_RUN = StopRule(precision=1.0, min_sessions=1, max_sessions=1, rounds=1)


def open_for_export(
    run: Path, result: SearchResult, moved_to: Path | None, *, as_searched: bool
) -> TrainedNetwork:
    """What ``export`` writes: the retrained network where there is one.

    Args:
        run: Directory.
        result: Of the search.
        moved_to: Where its data is now; None where it was.
        as_searched: The weights of the search, retrained or not.
    """
    if exists(RetrainRecord.file_in(run)) and not as_searched:
        return open_retrained(run, moved_to)
    if not result.has_images:
        return open_saved(run, result, None)
    dataset = open_data(result.data, moved_to)
    if result.has_file:
        return open_saved(run, result, dataset)
    return inherited(result, result.best, open_supernet(Path(result.supernet), dataset))


def export(
    result: SearchResult,
    trained: TrainedNetwork,
    folder: Path,
    form: Form = AS_IT_IS,
    device: Device | None = None,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> Manifest:
    """Export one of a result's networks into ``folder``, once ``device`` has run it."""
    runs = None if device is None else partial(_run_once, device)
    return export_network(
        trained, result, folder, form, run_on_device=runs, on_progress=on_progress
    )


def _run_once(device: Device, model: Path) -> None:
    measure(device, {model.stem: model}, ONE_RUN)


def profile_note(result: SearchResult) -> str | None:
    """One line where the profile is not the file that the search read; None where it is.

    The prediction stands either way: a result keeps the device and level that it was made for.
    """
    path = Path(result.profile)
    if not path.is_file():
        return f"{path} is not here: the prediction is that of the search"
    if sha256(path) != result.inputs.get(result.profile):
        return (
            f"{path} changed since the search: the prediction is that of the search, a new "
            "search would use the new profile"
        )
    return None
