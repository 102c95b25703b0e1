"""How a broken promise is told."""

from __future__ import annotations


def require(kept: object, text: str) -> None:
    """Raise where a promise is broken, also under ``python -O``.

    Raises:
        AssertionError: ``kept`` is false; ``text`` says what was promised and of what.
    """
    if not kept:
        raise AssertionError(text)
