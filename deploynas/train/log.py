"""A training's scalars as a log that TensorBoard reads."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from deploynas.train.loop import TrainingProgress


class ScalarLog:
    """Writes into a folder; does nothing where TensorBoard is not installed.

    A training that goes on from a checkpoint drops what an earlier process logged after it.

    Args:
        folder: Created with the first scalar; None where another process logs.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: Any = None
        self._is_missing = folder is None

    def __enter__(self) -> ScalarLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._writer is not None:
            self._writer.close()

    def add(self, state: TrainingProgress) -> None:
        """Log one step."""
        if self._is_missing:
            return
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
