"""What a strategy is: a name, what it fits, its options, where its weights come from, how it goes.

A strategy that evaluates networks makes a searcher, which is asked for architectures and told what
they are worth; the one driver in :mod:`deploynas.search.run` does the rest: duplicates, limits,
the journal, finalists. A gradient strategy trains and decides
(:mod:`deploynas.search.gradient`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import ValidationError

from deploynas.artifacts import Record
from deploynas.costs import Floats
from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.plugins import Plugins
from deploynas.search.problem import Problem
from deploynas.spaces import Archs, SearchSpace

if TYPE_CHECKING:
    from deploynas.search.gradient import GradientRecipe, Learner

Weights = Literal["any", "single-path", "own"]
Rounds = Generator[Archs, Floats, None]  # yields (n, num_choices) to evaluate, is sent (n,)


class Options(Record):
    """A strategy's own options: every field has a default, a description, and its range."""

    @classmethod
    def described(cls) -> list[dict[str, Any]]:
        """For people: name, default, range and help of every option."""
        bounds = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
        found = []
        for name, one in cls.model_fields.items():
            limits = [
                text.format(getattr(rule, key))
                for rule in one.metadata
                for key, text in bounds.items()
                if getattr(rule, key, None) is not None
            ]
            default = list(one.default) if isinstance(one.default, tuple) else one.default
            found.append(
                {
                    "name": name, "default": default, "range": " ".join(limits),
                    "help": one.description or "",
                }
            )  # fmt: skip
        return found


@dataclass(frozen=True)
class Effort:
    """How much a search may do.

    Attributes:
        num_evaluations: Networks that it may have evaluated.
        at_once: Networks that are evaluated at a time: as many are to be asked for.
    """

    num_evaluations: int
    at_once: int = 1

    def first(self, wanted: int) -> int:
        """Networks of a first population: as many as are wanted, and as can be had at a time."""
        return max(1, min(max(wanted, self.at_once), self.num_evaluations))


class Searcher(Protocol):
    """One run of a strategy."""

    def ask(self, n: int) -> Archs:
        """``(at most n, num_choices)`` what to evaluate next; none where there is nothing more.

        What was asked for is asked for once.
        """
        ...

    def tell(self, archs: Archs, scores: Floats, fidelity: str) -> None:
        """What networks are worth: ``(n,)`` fractions, and of what kind those are."""
        ...


class Strategy(abc.ABC):
    """Describes a way to search.

    Attributes:
        name: As the command line knows it.
        help: One line.
        options: Type of its options.
        home: The space that is searched where none is named.
        weights: Where those come from by which networks are judged: ``any``: whatever evaluates
            them; ``single-path``: a supernet trained by uniform single paths; ``own``: the
            strategy learns them with the architecture.
        predicts: Whether it fits a predictor of its own: pointless where one judges already.
        num_retrained: So many of the best are trained from scratch before one is chosen.
        shows_front: Whether people are shown the front: it is what was searched for.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    options: ClassVar[type[Options]] = Options
    home: ClassVar[str] = "mobile-small"
    weights: ClassVar[Weights] = "any"
    predicts: ClassVar[bool] = False
    num_retrained: ClassVar[int] = 0
    shows_front: ClassVar[bool] = False

    def misfit(self, space: SearchSpace) -> str | None:
        """Why a space cannot be searched so; None where it can."""
        return None

    def shown_costs(self, options: Any) -> tuple[str, ...]:
        """Costs of the front that a result shows."""
        return ("latency_ms",)

    def require_fit(self, space: SearchSpace) -> None:
        """Check that it can search a space.

        Raises:
            InvalidInputError: It cannot; says why, and what can.
        """
        reason = self.misfit(space)
        if reason is not None:
            fitting = [name for name, one in STRATEGIES.all().items() if one.misfit(space) is None]
            raise InvalidInputError(
                f"{space.name} does not fit {self.name}, {reason}", f"it fits {', '.join(fitting)}"
            )

    def options_from(self, typed: Mapping[str, str]) -> Options:
        """Its options from text.

        Raises:
            UnknownNameError: It has no such option.
            InvalidInputError: A value that cannot be.
        """
        found: Options = parsed(self.options, typed, f"option of {self.name}")
        return found


class Evaluating(Strategy):
    """A strategy that has networks evaluated."""

    def searcher(
        self, problem: Problem, options: Any, rng: np.random.Generator, effort: Effort
    ) -> Searcher:
        """A run of it; by default that of :meth:`rounds`.

        Raises:
            InfeasibleBudgetError: No network within the limits was found.
        """
        return _InRounds(self.rounds(problem, options, rng, effort), problem.space)

    def rounds(
        self, problem: Problem, options: Any, rng: np.random.Generator, effort: Effort
    ) -> Rounds:
        """The run as a generator, which yields architectures and is sent what they are worth."""
        raise NotImplementedError(f"{self.name} has neither a searcher nor rounds")


class Gradient(Strategy):
    """A strategy that learns weights and architecture together, and decides."""

    weights = "own"

    @abc.abstractmethod
    def recipe(self, options: Any, seed: int) -> GradientRecipe:
        """How weights and architecture take turns, by default."""

    @abc.abstractmethod
    def learner(self, space: SearchSpace, recipe: Any) -> Learner:
        """What learns.

        Raises:
            InvalidInputError: An option is not of this space.
        """

    @abc.abstractmethod
    def step_cost(self, space: SearchSpace) -> float:
        """What a step takes, over a training step of one network: for forecasts."""


class _InRounds:
    """A searcher that a generator is."""

    def __init__(self, rounds: Rounds, space: SearchSpace) -> None:
        self._rounds, self._none = rounds, space.as_rows([])
        self._scores: dict[bytes, float] = {}
        self._archs = next(rounds, self._none)
        self._num_asked = 0

    def ask(self, n: int) -> Archs:
        if self._num_asked == len(self._archs) and len(self._archs):
            if any(arch.tobytes() not in self._scores for arch in self._archs):
                return self._none  # what was asked for is not all told yet
            scores = np.array([self._scores[arch.tobytes()] for arch in self._archs])
            try:
                self._archs = self._rounds.send(scores)
            except StopIteration:
                self._archs = self._none
            self._num_asked = 0
        found = self._archs[self._num_asked : self._num_asked + n]
        self._num_asked += len(found)
        return found

    def tell(self, archs: Archs, scores: Floats, fidelity: str) -> None:
        self._scores.update((a.tobytes(), float(s)) for a, s in zip(archs, scores, strict=True))


def best_of(rounds: Rounds, evaluate: Callable[[Archs], Floats]) -> Archs:
    """``(n, num_choices)`` all that rounds ask for, the best first; where judging is cheap."""
    archs, scores = [], []
    asked = next(rounds, None)
    while asked is not None:
        archs.append(asked)
        scores.append(evaluate(asked))
        try:
            asked = rounds.send(scores[-1])
        except StopIteration:
            break
    both: Archs = np.concatenate(archs)
    ordered: Archs = both[np.argsort(-np.concatenate(scores), kind="stable")]
    return ordered


def parsed(kind: type[Any], typed: Mapping[str, str], what: str, base: Any = None) -> Any:
    """A record from text, checked.

    Args:
        kind: Its type.
        typed: Field -> text.
        what: A field, for messages.
        base: Has the values of other fields; the defaults where None.

    Raises:
        UnknownNameError: No such field.
        InvalidInputError: A value that cannot be.
    """
    for name in typed:
        if name not in kind.model_fields:
            raise _no_field(what, name, kind)
    rest = {} if base is None else base.model_dump(mode="json")
    known = {name: value for name, value in rest.items() if name not in typed}
    try:
        own = kind.model_validate_strings(dict(typed), strict=False)
        values = {name: getattr(own, name) for name in typed}
        return kind.model_validate({**known, **values})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        raise InvalidInputError(
            f"{what} {where}: {first['msg'].lower()}, got {first['input']!r}"
        ) from None


def _no_field(what: str, name: str, kind: type[Any]) -> Exception:
    if kind.model_fields:
        return UnknownNameError(what, name, kind.model_fields, tells_all=True)
    return InvalidInputError(f"unknown {what} {name!r}", "it has none")


DEFAULT = "predictor"  # of a search for which nobody chose: docs/strategies.md says why
STRATEGIES: Plugins[Strategy] = Plugins(
    "strategy",
    "deploynas.strategies",
    {
        name: f"deploynas.search.strategies.{name.replace('-', '_')}:STRATEGY"
        for name in (
            "ofa", "evolution", "pareto", "predictor", "one-shot", "proxyless", "darts", "random",
        )
    },
)  # fmt: skip
