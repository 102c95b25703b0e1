"""Heights and widths in pixels, of input images and of feature maps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deploynas.errors import InvalidInputError

MIN_SIDE, MAX_SIDE = 8, 4_096  # of a network's input


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Resolution:
    """A height and a width in pixels, ordered by their product.

    People and files write :attr:`plain`, which it equals: ``Resolution(128, 128) == 128`` and
    ``Resolution(96, 160) == "96x160"``.
    """

    height: int
    width: int

    @classmethod
    def of(cls, value: object) -> Resolution:
        """What a side, ``HEIGHTxWIDTH`` or a resolution means.

        Raises:
            InvalidInputError: It is none of them, or a side is not positive.
        """
        if isinstance(value, Resolution):
            return value
        found = re.fullmatch(r"([1-9][0-9]{0,8})(?:x([1-9][0-9]{0,8}))?", str(value))
        if found is None:
            raise InvalidInputError(
                f"a resolution is a positive number of pixels ({MIN_SIDE} px or more of a "
                f"network), or HEIGHTxWIDTH like 96x160, not {value!r}"
            )
        return cls(int(found[1]), int(found[2] or found[1]))

    @property
    def size(self) -> tuple[int, int]:
        """Height, width."""
        return self.height, self.width

    @property
    def numbers(self) -> tuple[int, ...]:
        """The side of a square; else height and width."""
        return (self.height,) if self.is_square else self.size

    @property
    def is_square(self) -> bool:
        """Whether height and width are one."""
        return self.height == self.width

    @property
    def plain(self) -> int | str:
        """The side of a square; else ``HEIGHTxWIDTH``."""
        return self.height if self.is_square else f"{self.height}x{self.width}"

    def strided(self, stride: int) -> Resolution:
        """What a padded convolution of a stride makes of a feature map of this size."""
        return Resolution(-(-self.height // stride), -(-self.width // stride))

    def part_of(
        self, height: int, width: int, share: float = 1.0
    ) -> tuple[float, float, float, float]:
        """What of an image becomes a network's input of this resolution.

        Args:
            height: Of the image.
            width: Of the image.
            share: Of the largest rectangle of this shape: how much of its sides is kept.

        Returns:
            Top, left, height and width of a rectangle of this shape in the image's centre.
        """
        tall = min(height, width * self.height / self.width) * share
        wide = min(width, height * self.width / self.height) * share
        return (height - tall) / 2, (width - wide) / 2, tall, wide

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> Any:
        """In a record it is read by :meth:`of` and written as :attr:`plain`."""
        from pydantic_core import core_schema

        written = core_schema.plain_serializer_function_ser_schema(lambda one: one.plain)
        return core_schema.no_info_plain_validator_function(cls.of, serialization=written)

    def __eq__(self, other: object) -> bool:
        return bool(self.plain == (other.plain if isinstance(other, Resolution) else other))

    def __hash__(self) -> int:
        return hash(self.plain)

    def __lt__(self, other: Resolution) -> bool:
        return (self.height * self.width, self.height) < (other.height * other.width, other.height)

    def __str__(self) -> str:
        return str(self.plain)

    def __repr__(self) -> str:
        return repr(self.plain)


ResolutionLike = Resolution | int | str  # what Resolution.of takes


def resolutions_of(values: Iterable[ResolutionLike]) -> tuple[Resolution, ...]:
    """Different resolutions, in ascending order.

    Raises:
        InvalidInputError: A value is none.
    """
    return tuple(sorted({Resolution.of(value) for value in values}))
