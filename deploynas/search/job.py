"""What a search is: one frozen record, whose hash names what is kept of it."""

from __future__ import annotations

import hashlib
import json

from deploynas.artifacts import Record
from deploynas.profile.device_profile import Precision
from deploynas.search.budget import Budget


class Job(Record):
    """All that decides what a search finds.

    Nothing that was kept under one job is taken for another: change the budget, and the same
    command searches again.

    Attributes:
        space: What rebuilds it.
        data: Fingerprint of the images.
        profile: Fingerprint of what the latency model was fitted to.
        budget: Hard limits.
        strategy, options: Its name, and its own options as text.
        evaluator: What judges a network: how it is trained, or with which weights.
        num_evaluations: Networks that it may evaluate.
        precision: Of the latencies.
        seed: Of every draw.
        attached: Whether finalists are measured.
    """

    space: dict[str, str | int | list[int]]
    data: str
    profile: str
    budget: Budget
    strategy: str
    options: str = ""
    evaluator: str
    num_evaluations: int
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
