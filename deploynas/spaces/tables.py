"""Spaces as files: a stage table in TOML.

The mobile spaces that ship are such files, in ``tables/`` beside this module; a user's own is
named by its path. ``operator = "mbconv"`` makes a once-for-all space, whose stages have an elastic
depth (``depths``) and whose blocks an elastic kernel size and expand ratio; ``operators`` makes a
choice of candidates a block, ``depth`` blocks a stage.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.spaces.layers import Activation
from deploynas.spaces.resolution import MAX_SIDE, MIN_SIDE, Resolution
from deploynas.spaces.staged import MBCONV, UIB, ZERO, Stage, StageTable, separable_kernel

FOLDER = Path(__file__).parent / "tables"
SUFFIX = ".toml"
MAX_WIDTH, MAX_DEPTH = 8_192, 32
MAX_TOGETHER = 500  # widths of all stages and resolutions, which costs depend on together
Place = tuple[str | int, ...]  # of a value: its keys, from the outside
Check = Callable[[Any], Any]  # what a value means; raises ValueError with what it has to be


@functools.cache
def shipped_names() -> tuple[str, ...]:
    """Names of the tables that ship."""
    return tuple(sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}")))


@functools.cache
def shipped_table(name: str) -> StageTable:
    """A table that ships."""
    return read_table(FOLDER / f"{name}{SUFFIX}")


def read_table(path: Path) -> StageTable:
    """The table in a TOML file.

    Raises:
        MissingFileError: There is none.
        InvalidInputError: It is not the table of a space; names the line and the key.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist", "a space's table is a TOML file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as TOML: {error}") from None
    return _table(_Section(_Source(str(path), _lines_of(text)), (), values))


def parse_table(text: str) -> StageTable:
    """The reverse of :attr:`StageTable.text`.

    Raises:
        InvalidInputError: It is not a table's text.
    """
    source = _Source("the table of a space", {})
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"{source.name} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise InvalidInputError(f"{source.name} is not a table")
    return _table(_Section(source, (), values))


@dataclass(frozen=True)
class _Source:
    """Where values come from.

    Attributes:
        name: Of the file.
        lines: Place of a value or a section -> its line.
    """

    name: str
    lines: Mapping[Place, int]

    def error(self, place: Place, text: str) -> InvalidInputError:
        """What to raise about the value at a place, or at the nearest that has a line."""
        known = (place[:end] for end in range(len(place), 0, -1))
        line = next((self.lines[near] for near in known if near in self.lines), None)
        return InvalidInputError(f"{self.name}{'' if line is None else f', line {line}'}: {text}")


def _lines_of(text: str) -> dict[Place, int]:
    """The line of every key that has one to itself; ``tomllib`` does not tell."""
    lines: dict[Place, int] = {}
    section: Place = ()
    num_of: dict[str, int] = {}  # entries of an array of tables
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\s*\[\[\s*([\w-]+)\s*\]\]", line):
            name = found[1]
            section = (name, num_of.get(name, 0))
            num_of[name] = num_of.get(name, 0) + 1
            lines.setdefault((name,), number)
            lines[section] = number
        elif found := re.match(r"\s*\[\s*([\w-]+)\s*\]\s*(#|$)", line):
            section = (found[1],)
            lines[section] = number
        elif found := re.match(r"""\s*(["']?)([\w-]+)\1\s*[=.]""", line):
            lines.setdefault((*section, found[2]), number)
    return lines


class _Section:
    """One table of a file, whose every value is checked.

    Args:
        source: Of the values.
        place: Of the section.
        values: As read.
    """

    def __init__(self, source: _Source, place: Place, values: Mapping[str, object]) -> None:
        self._source, self._place, self._values = source, place, values

    def allow(self, *keys: str) -> None:
        """Refuse any other key."""
        for key in self._values:
            if key not in keys:
                near = difflib.get_close_matches(key, keys, 1)
                meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(keys)}"
                raise self.error(key, f"unknown key {key!r} {self._of}({meant})")

    def has(self, key: str) -> bool:
        """Whether a key is given."""
        return key in self._values

    def get(self, key: str, check: Check, default: object = ...) -> Any:
        """A value as ``check`` reads it; what may be left out has a ``default``."""
        if key not in self._values:
            if default is ...:
                who = self._who or "the table"
                raise self.error(key, f"{who} lacks the key {key!r}")
            return default
        value = self._values[key]
        try:
            return check(value)
        except ValueError as error:
            text = f"{key} {self._of}{error}, got {value!r}"
            raise self.error(key, text) from None

    def section(self, key: str) -> _Section:
        """The table under a key."""
        return _Section(self._source, (*self._place, key), self.get(key, _mapping))

    def sections(self, key: str) -> list[_Section]:
        """The tables under a key, one or more."""
        place = (*self._place, key)
        tables = self.get(key, _mappings)
        return [_Section(self._source, (*place, i), one) for i, one in enumerate(tables)]

    def error(self, key: str, text: str) -> InvalidInputError:
        """What to raise about a key."""
        return self._source.error((*self._place, key), text)

    @property
    def _who(self) -> str:
        """The section in words; empty for the whole."""
        if not self._place:
            return ""
        name, *number = self._place
        return f"stage {int(number[0]) + 1}" if number else str(name)

    @property
    def _of(self) -> str:
        return f"of {self._who} " if self._place else ""


def _table(top: _Section) -> StageTable:
    top.allow(
        "operator", "operators", "resolutions", "num_classes", "kernel_sizes", "expand_ratios",
        "activation", "batch_norm_eps", "stem", "first", "stages", "head",
    )  # fmt: skip
    top.get("operator", _one_of((MBCONV,)), None)
    operators = top.get("operators", _operators, ())
    if top.has("operator") == top.has("operators"):
        raise top.error(
            "operators",
            f'give either operator = "{MBCONV}", elastic in all, or operators = [...], '
            "a choice of candidates a block",
        )
    activation = top.get("activation", _one_of(get_args(Activation)))
    stem, first, head = (top.section(name) for name in ("stem", "first", "head"))
    stem.allow("width", "stride")
    first.allow("width", "activation")
    head.allow("width", "features")
    stages = top.sections("stages")
    kernel_sizes = top.get("kernel_sizes", _kernel_sizes, ())
    expand_ratios = top.get("expand_ratios", _expand_ratios, ())
    table = StageTable(
        stem_width=stem.get("width", _width),
        first_width=first.get("width", _width),
        first_activation=first.get("activation", _one_of(get_args(Activation)), activation),
        stages=tuple(
            _stage(stage, operators, activation, kernel_sizes, expand_ratios) for stage in stages
        ),
        head_width=head.get("width", _width),
        head_features=head.get("features", _whole(0, MAX_WIDTH), 0),
        activation=activation,
        kernel_sizes=kernel_sizes,
        expand_ratios=expand_ratios,
        resolutions=top.get("resolutions", _options(_resolution)),
        num_classes=top.get("num_classes", _whole(1, 1_000_000), 10),
        batch_norm_eps=top.get("batch_norm_eps", _eps, 1e-5),
        operators=operators,
        stem_stride=stem.get("stride", _one_of((1, 2)), 2),
    )
    together = math.prod(len(s.widths) for s in table.stages if s.widths) * len(table.resolutions)
    if together > MAX_TOGETHER:
        raise top.error(
            "stages",
            f"{together} combinations of widths and resolutions: at most {MAX_TOGETHER} can be "
            "searched exactly",
        )
    return table


def _stage(
    stage: _Section,
    operators: tuple[str, ...],
    activation: Activation,
    kernel_sizes: tuple[int, ...],
    expand_ratios: tuple[int, ...],
) -> Stage:
    """A stage; what it leaves to the table must stand there."""
    length = ("operators", "depth") if operators else ("widths", "depths")
    stage.allow("width", "stride", "activation", "se", "kernel_sizes", "expand_ratios", *length)
    widths = stage.get("widths", _options(_width), ())
    if widths and stage.has("width"):
        raise stage.error("widths", "a stage has one width, or widths to choose from")
    own = stage.get("operators", _operators, ())
    if operators:
        depths = tuple(range(1, 1 + stage.get("depth", _whole(1, MAX_DEPTH))))
    else:
        depths = stage.get("depths", _options(_whole(1, MAX_DEPTH)))
    is_free = not {MBCONV, UIB} & {*(own or operators or (MBCONV,))}
    return Stage(
        width=widths[-1] if widths else stage.get("width", _width),
        stride=stage.get("stride", _one_of((1, 2))),
        activation=stage.get("activation", _one_of(get_args(Activation)), activation),
        se=stage.get("se", _one_of((False, True)), False),
        depths=depths,
        kernel_sizes=stage.get(
            "kernel_sizes", _kernel_sizes, () if kernel_sizes or is_free else ...
        ),
        expand_ratios=stage.get(
            "expand_ratios", _expand_ratios, () if expand_ratios or is_free else ...
        ),
        operators=own,
        widths=widths if len(widths) > 1 else (),
    )


def _whole(low: int, high: int) -> Check:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"is a whole number from {low} to {high}")
        return value

    return check


def _resolution(value: object) -> Resolution:
    text = f'is a whole number from {MIN_SIDE} to {MAX_SIDE}, or two of them, as in "96x160"'
    try:
        found = Resolution.of(value)
    except InvalidInputError:
        raise ValueError(text) from None
    if not MIN_SIDE <= min(found.size) <= max(found.size) <= MAX_SIDE:
        raise ValueError(text)
    return found


def _one_of(options: Sequence[object]) -> Check:
    def check(value: object) -> object:
        if not any(type(value) is type(option) and value == option for option in options):
            named = ", ".join(json.dumps(option) for option in options)
            raise ValueError(f"is one of {named}" if len(options) > 1 else f"is {named}")
        return value

    return check


def _options(one: Check) -> Check:
    """A list of different options, in ascending order."""

    def check(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError("is a list of options")
        if not value:
            raise ValueError("needs at least one option")
        try:
            found = [one(option) for option in value]
        except ValueError as error:
            raise ValueError(f"is a list: each {error}") from None
        if len(set(found)) < len(found):
            raise ValueError("names an option twice")
        return tuple(sorted(found))

    return check


def _odd(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in range(1, 32, 2):
        raise ValueError("is an odd number from 1 to 31")
    return value


def _operator(value: object) -> str:
    if not isinstance(value, str) or not (
        value in (ZERO, UIB, MBCONV) or separable_kernel(value) is not None
    ):
        raise ValueError(f"is {ZERO}, {MBCONV}, {UIB}, sep_conv_3x3, sep_conv_5x5, ...")
    return value


def _operators(value: object) -> tuple[str, ...]:
    """The cheapest first."""
    found: tuple[str, ...] = _options(_operator)(value)
    if found == (ZERO,):
        raise ValueError(f"needs an operator beside {ZERO}")
    return tuple(sorted(found, key=_cost))


def _cost(operator: str) -> tuple[int, int]:
    """What orders operators, the cheapest first."""
    if operator in (UIB, MBCONV):
        return 1 + (operator == MBCONV), 0
    return 0, separable_kernel(operator) or 0


def _eps(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError("is a number between 0 and 1")
    return float(value)


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError("is a table of its own")
    return value


def _mappings(value: object) -> list[Mapping[str, object]]:
    if not isinstance(value, list) or not value:
        raise ValueError("are tables, [[stages]], one or more")
    return [_mapping(one) for one in value]


_width = _whole(1, MAX_WIDTH)
_kernel_sizes = _options(_odd)
_expand_ratios = _options(_whole(1, 64))
