"""What goes by a name: what ships with deploynas, and what other packages add by entry points.

A package that declares, say, ::

    [project.entry-points."deploynas.strategies"]
    annealing = "my_package.annealing:STRATEGY"

adds a strategy of that name; nothing of deploynas changes for it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

from deploynas.errors import InvalidInputError, UnknownNameError

T = TypeVar("T")


class Plugins(Generic[T]):
    """Objects of one kind, by name; each is imported when it is first asked for.

    Args:
        what: One of them, for messages.
        group: Of the entry points.
        shipped: Name -> ``module:attribute``.

    Attributes:
        broken: Name -> why :meth:`all` left it out.
    """

    def __init__(self, what: str, group: str, shipped: Mapping[str, str]) -> None:
        self._what, self._group, self._shipped = what, group, shipped
        self._loaded: dict[str, T] = {}
        self.broken: dict[str, str] = {}

    def names(self) -> list[str]:
        """Those that ship, then others by name.

        Raises:
            InvalidInputError: Two have one name.
        """
        return [*self._shipped, *sorted(self._others())]

    def load(self, name: str) -> T:
        """The object.

        Raises:
            UnknownNameError: There is none of that name.
            InvalidInputError: It cannot be imported, or two have one name.
        """
        if name not in self._loaded:
            if name in self._shipped:
                module, _, attribute = self._shipped[name].partition(":")
                self._loaded[name] = getattr(import_module(module), attribute)
            else:
                others = self._others()
                if name not in others:
                    raise UnknownNameError(self._what, name, self.names())
                self._loaded[name] = self._imported(others[name])
        return self._loaded[name]

    def forget(self, name: str) -> None:
        """Import an object anew when it is next asked for, or find that it is gone."""
        self._loaded.pop(name, None)

    def all(self) -> dict[str, T]:
        """Name -> object, of those that can be imported.

        Raises:
            InvalidInputError: Two have one name.
        """
        self.broken.clear()
        found = {}
        for name in self.names():
            try:
                found[name] = self.load(name)
            except InvalidInputError as error:
                self.broken[name] = str(error)
        return found

    def _others(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for one in _declared(entry_points, self._group, tuple(sys.path)):
            twin = found.get(one.name)
            if one.name in self._shipped or (twin is not None and twin.value != one.value):
                who = "deploynas itself" if twin is None else _package(twin)
                raise InvalidInputError(
                    f"two packages bring a {self._what} named {one.name!r}: {who} and "
                    f"{_package(one)}",
                    "uninstall one of them",
                )
            found[one.name] = one
        return found

    def _imported(self, one: EntryPoint) -> T:
        try:
            return cast(T, one.load())
        except Exception as error:
            raise InvalidInputError(
                f"the {self._what} {one.name!r} of {_package(one)} cannot be imported: {error}"
            ) from error


@functools.cache
def _declared(
    scan: Callable[..., Iterable[EntryPoint]], group: str, path: tuple[str, ...]
) -> tuple[EntryPoint, ...]:
    """Entry points of a group: every package on the path is looked at, which takes 40 ms."""
    return tuple(scan(group=group))


def _package(one: EntryPoint) -> str:
    return one.dist.name if one.dist is not None else one.value
