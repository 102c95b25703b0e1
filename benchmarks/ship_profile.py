"""Packs a measured profile for shipping, and fills the table of profiles/README.md.

python benchmarks/ship_profile.py [PROFILE NAME]
Writes profiles/NAME.json.gz: every raw sample of PROFILE, as compact JSON, gzip at its best; the
same input gives the same bytes. Without arguments only the table is written anew.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path

from deploynas.artifacts import open_atomic
from deploynas.errors import InvalidInputError
from deploynas.profile import DeviceProfile
from deploynas.profile.shipped import SUFFIX, calibrations

FOLDER = Path(__file__).parents[1] / "profiles"
INDEX = FOLDER / "README.md"
BEGIN, END = "<!-- table -->", "<!-- /table -->"
HEAD = """\
| name | device | layers | holds | stated error | kB |
| --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Pack, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("profile", type=Path, nargs="?")
    parser.add_argument("name", nargs="?")
    options = parser.parse_args()
    if options.profile is not None:
        if options.name is None:
            parser.error("give the name, too")
        path = FOLDER / f"{options.name}{SUFFIX}"
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", options.name):
            parser.error(f"{options.name!r}: a name is small letters, digits and hyphens")
        with open_atomic(path) as file:
            file.write(packed(options.profile))
        print(f"{path}: {path.stat().st_size:,} bytes")
    text = INDEX.read_text(encoding="utf-8")
    with open_atomic(INDEX) as file:
        file.write(with_table(text, table(FOLDER)).encode())


def packed(profile: Path) -> bytes:
    """The profile's document, small.

    Raises:
        InvalidInputError: It is no finished profile, or it tells how a device was reached, which
            is nobody else's to know.
    """
    read = DeviceProfile.read(profile)
    if not read.networks or read.validations.keys() != read.networks.keys():
        raise InvalidInputError(f"{profile} is not finished: run deploynas profile again")
    if "reached" in read.identity.recorded:
        raise InvalidInputError(f"{profile} tells how its device is reached")
    text = json.dumps(read.document(), separators=(",", ":"), ensure_ascii=False)
    return gzip.compress(text.encode(), 9, mtime=0)


def table(folder: Path) -> str:
    """A row a shipped profile."""
    rows = []
    for path in sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.name.removesuffix(SUFFIX)):
        profile = DeviceProfile.read(path)
        held = calibrations(profile)
        spaces = "; ".join(
            f"`{one.space}` {one.precision} at {', '.join(map(str, one.resolutions))} px, "
            f"{one.num_classes} classes, {one.num_networks} networks"
            for one in held
        )
        errors = "; ".join(f"{one.stated_error:.1%}" for one in held)
        rows.append(
            f"| `{path.name.removesuffix(SUFFIX)}` | {profile.identity.title} | "
            f"{len(profile.layers)} | {spaces} | {errors} | {path.stat().st_size / 1e3:.0f} |\n"
        )
    return HEAD + "".join(rows)


def with_table(text: str, rows: str) -> str:
    """The index page with other rows."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{rows}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    main()
