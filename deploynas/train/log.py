"""A training's scalars as a log that TensorBoard reads."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from deploynas.errors import OutputError
from deploynas.train.loop import TrainingProgress


class ScalarLog:
    """Writes into a folder; does nothing where TensorBoard is not installed.

    A training that goes on from a checkpoint drops what an earlier process logged after it.

    Args:
        folder: Created with the first scalar; None where another process logs.

    Raises:
        OutputError: Of :meth:`add`: the folder cannot be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: Any = None
        self._is_missing = folder is None

    def __enter__(self) -> ScalarLog:
        self._hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        return self

    def _on_thread_error(self, what: threading.ExceptHookArgs) -> None:
        """What ends TensorBoard's own thread is raised by its next call as well."""
        if not type(what.thread).__module__.startswith("tensorboard"):
            self._hook(what)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._writer is not None:
            with contextlib.suppress(OSError):  # add said so
                self._writer.close()
        threading.excepthook = self._hook

    def add(self, state: TrainingProgress) -> None:
        """Log one step."""
        if self._is_missing:
            return
        try:
            self._add(state)
        except OSError as error:
            assert self._folder is not None
            raise OutputError.from_os_error(self._folder, error) from error

    def _add(self, state: TrainingProgress) -> None:
        if self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._is_missing = True
                return
            self._writer = SummaryWriter(str(self._folder), purge_step=state.step)
        self._writer.add_scalar("loss", state.loss, state.step)
        self._writer.add_scalar("images per second", state.images_per_second, state.step)
        for name, value in state.scalars.items():
            self._writer.add_scalar(name, value, state.step)
        for name, accuracy in state.fresh.items():
            self._writer.add_scalar(f"validation accuracy/{name}", accuracy, state.step)
