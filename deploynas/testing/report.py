"""How a broken promise is told."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def require(kept: object, text: str) -> None:
    """Raise where a promise is broken, also under ``python -O``.

    Raises:
        AssertionError: ``kept`` is false; ``text`` says what was promised and of what.
    """
    if not kept:
        raise AssertionError(text)


def promises(check: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A check to which any error is a broken promise: where none is due, none may be raised."""

    @functools.wraps(check)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return check(*args, **kwargs)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}") from error

    return checked
