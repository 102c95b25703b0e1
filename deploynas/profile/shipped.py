"""The profiles that travel with the package: ``--profile shipped:NAME``. They are only read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploynas.errors import UnknownNameError
from deploynas.profile.device_profile import DeviceProfile
from deploynas.spaces import resolutions_of

FOLDER = Path(__file__).parents[1] / "shipped_profiles"  # in a checkout a link to profiles/
PREFIX, SUFFIX = "shipped:", ".json.gz"


def names() -> list[str]:
    """What follows ``shipped:``, sorted."""
    return sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}"))


def locate(path: Path) -> Path:
    """The file that ``shipped:NAME`` stands for; any other path as it is.

    Raises:
        UnknownNameError: No such profile ships.
    """
    if not str(path).startswith(PREFIX):
        return path
    name = str(path).removeprefix(PREFIX)
    if name not in names():
        raise UnknownNameError("shipped profile", name, names())
    return FOLDER / f"{name}{SUFFIX}"


def is_shipped(path: Path) -> bool:
    """Whether ``path`` is ``shipped:NAME`` or a file that such a name stands for."""
    if str(path).startswith(PREFIX):
        return True
    return path.name.endswith(SUFFIX) and path.resolve().parent == FOLDER.resolve()


@dataclass(frozen=True)
class Calibration:
    """A space in one precision, as a profile holds it.

    Attributes:
        space, precision, num_classes, in_channels: Which.
        resolutions: Of its calibration networks, ascending, as files write them.
        num_networks: How many these are.
        stated_error: Margin within which 95 % of held-out networks lie, relative; None where it
            was not validated.
    """

    space: str
    precision: str
    num_classes: int
    in_channels: int
    resolutions: tuple[int | str, ...]
    num_networks: int
    stated_error: float | None


def calibrations(profile: DeviceProfile) -> list[Calibration]:
    """What a profile can predict."""
    found = []
    for key, networks in profile.networks.items():
        precision, space, num_classes, in_channels = key.split("/")
        validation = profile.validations.get(key)
        found.append(
            Calibration(
                space=space,
                precision=precision,
                num_classes=int(num_classes),
                in_channels=int(in_channels),
                resolutions=tuple(
                    one.plain for one in resolutions_of(network.resolution for network in networks)
                ),
                num_networks=len(networks),
                stated_error=validation.margin if validation else None,
            )
        )
    return found
