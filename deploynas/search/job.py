"""What a search is: one frozen record, whose hash names what is kept of it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from deploynas.artifacts import Record
from deploynas.profile.device_profile import Precision
from deploynas.search.budget import Budget
from deploynas.spaces import SpaceRecord


class Job(Record):
    """All that decides what a search finds.

    Nothing that was kept under one job is taken for another: change the budget, and the same
    command searches again.

    Attributes:
        space: What rebuilds it.
        data: Fingerprint of the images.
        profiles: Fingerprints of what the latency models were fitted to; the first device's
            under the empty name.
        budget: Hard limits.
        strategy, options: Its name, and its own options.
        evaluator: What judges a network: how it is trained, or with which weights.
        num_evaluations, at_once: Networks that it may evaluate, and at a time.
        beside: Whether others are evaluated beside the strategy.
        precision: Of the latencies.
        seed: Of every draw.
        attached: Whether finalists are measured.
    """

    space: SpaceRecord
    data: str
    profiles: dict[str, str]
    budget: Budget
    strategy: str
    options: dict[str, Any]
    evaluator: str
    num_evaluations: int
    at_once: int = 1
    beside: bool = True
    precision: Precision = "fp32"
    seed: int
    attached: bool

    @property
    def key(self) -> str:
        """Hash of all of it, for names of files."""
        return hash_of(self.model_dump(mode="json"))


def hash_of(document: object) -> str:
    """A short hash of a JSON document."""
    text = json.dumps(document, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
