"""Training loops, schedules, checkpoints, and the accuracy of what was trained."""

from __future__ import annotations

from deploynas.train.batches import Batches
from deploynas.train.checkpoint import load_weights, save_weights
from deploynas.train.evaluate import SupernetEvaluator, accuracy
from deploynas.train.supernet import (
    TrainingProgress,
    TrainingSettings,
    pick_device,
    train_supernet,
)

__all__ = [
    "Batches",
    "SupernetEvaluator",
    "TrainingProgress",
    "TrainingSettings",
    "accuracy",
    "load_weights",
    "pick_device",
    "save_weights",
    "train_supernet",
]
