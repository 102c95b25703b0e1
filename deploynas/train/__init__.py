"""Training loops, schedules, checkpoints, and the accuracy of what was trained."""

from __future__ import annotations

from deploynas.train.batches import Batches
from deploynas.train.checkpoint import load_weights, save_weights, weights_of
from deploynas.train.evaluate import SupernetEvaluator, accuracy
from deploynas.train.log import ScalarLog
from deploynas.train.loop import Recipe, TrainingProgress, pick_device
from deploynas.train.network import train_network
from deploynas.train.schedules import SCHEDULES
from deploynas.train.supernet import SupernetRecipe, train_supernet

__all__ = [
    "SCHEDULES",
    "Batches",
    "Recipe",
    "ScalarLog",
    "SupernetEvaluator",
    "SupernetRecipe",
    "TrainingProgress",
    "accuracy",
    "load_weights",
    "pick_device",
    "save_weights",
    "train_network",
    "train_supernet",
    "weights_of",
]
