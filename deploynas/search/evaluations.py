"""Every evaluation of a search, on disk from the moment it is made."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from deploynas.artifacts import Record
from deploynas.journal import Journal
from deploynas.spaces import ArchRecord, Archs, SearchSpace

Fidelity = Literal["quick", "final"]


class Evaluation(Record):
    """What a network was judged to be worth.

    Attributes:
        evaluator: Identity of what judged it: weights, images, and how many of them.
        fidelity: In the search's inner loop, or on the whole validation split.
        accuracy: A fraction.
    """

    evaluator: str
    fidelity: Fidelity
    architecture: ArchRecord
    accuracy: float


class Evaluations(AbstractContextManager["Evaluations"]):
    """The evaluations of one evaluator in a run, those of earlier processes among them.

    A context manager. A search that was stopped asks the same networks again, and is answered
    from here; so is another search of the run, under another budget, by the same evaluator.

    Args:
        run: Directory; ``evaluations.jsonl`` in it keeps them.
        evaluator: Identity; evaluations of others are passed over. None keeps nothing: for an
            evaluator that is as quick as reading, or that keeps its own.
        space: Of the rows.

    Attributes:
        damage: In words, where lines of it were no longer what was written.

    Raises:
        OutputError: The file cannot be written, or another process searches into this run.
    """

    def __init__(self, run: Path, evaluator: str | None, space: SearchSpace) -> None:
        self._evaluator, self._space = evaluator, space
        self._known: dict[tuple[Fidelity, str], float] = {}
        self._journal: Journal[Evaluation] | None = None
        self.damage: str | None = None
        if evaluator is None:
            return
        self._journal = Journal(run / "evaluations.jsonl", Evaluation, str(run))
        if self._journal.num_cut:
            self.damage = (
                f"{self._journal.num_cut} lines of {self._journal.path} were edited or damaged: "
                "they are evaluated again"
            )
        for one in self._journal.entries:
            if one.evaluator == evaluator:
                self._known[one.fidelity, _key(one.architecture)] = one.accuracy

    def get(self, arch: Archs, fidelity: Fidelity) -> float | None:
        """The accuracy of ``(num_choices,)``, where it is known."""
        if not self._known:
            return None
        return self._known.get((fidelity, _key(self._decoded(arch))))

    def add(self, arch: Archs, fidelity: Fidelity, accuracy: float) -> None:
        """Keep one."""
        if self._journal is None or self._evaluator is None:
            return
        architecture = self._decoded(arch)
        one = Evaluation(
            evaluator=self._evaluator, fidelity=fidelity, architecture=architecture,
            accuracy=accuracy,
        )  # fmt: skip
        self._journal.append(one, through=True)

    def _decoded(self, arch: Archs) -> ArchRecord:
        (found,) = self._space.decode(arch[None])
        return found  # type: ignore[return-value]

    def __exit__(self, *exception: object) -> None:
        if self._journal is not None:
            self._journal.close()


def _key(architecture: ArchRecord) -> str:
    return json.dumps(architecture, sort_keys=True)
