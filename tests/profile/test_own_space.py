"""A table of one's own in a profile: found again as it was, and never as it became."""

from __future__ import annotations

import shlex

import pytest

from deploynas import spaces
from deploynas.errors import IncompleteProfileError
from deploynas.profile import LatencyModel
from deploynas.profile.validate import profiled_spaces
from deploynas.spaces.tables import FOLDER


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text((FOLDER / "mobile-plain.toml").read_text())
    return path


def test_calibrations_are_of_the_table_as_it_was(path, board_profile):
    space = spaces.space(str(path), 3, 1, [16])
    profile = board_profile(space)
    assert LatencyModel(space, profile).predict_ms(space.smallest()) > 0
    assert profiled_spaces(profile) == []
    (found,) = profiled_spaces(profile, own=str(path))
    assert (found.spec, found.argument) == (space.spec, str(path))

    path.write_text(path.read_text().replace("depths = [1, 2, 3]", "depths = [1, 2]"))
    changed = spaces.space(str(path), 3, 1, [16])
    assert set(changed.layer_table) == set(space.layer_table)  # every layer was measured
    with pytest.raises(IncompleteProfileError) as caught:
        LatencyModel(changed, profile)
    assert "no calibration of mine.toml" in str(caught.value)
    assert f"--space {shlex.quote(str(path))}" in str(caught.value)
    assert profiled_spaces(profile, own=str(path)) == []
    again = spaces.space(**space.spec)  # as a run holds it
    assert LatencyModel(again, profile).predict_ms(again.smallest()) > 0
