"""A search on a machine that is slower than its profile: budget kept, and gone on with alike."""

from __future__ import annotations

import numpy as np
import pytest

import deploynas as dn
from deploynas.data.sources import load_digits
from deploynas.export import Manifest
from deploynas.export.expected import expected_now
from deploynas.profile import LatencyModel
from deploynas.profile.levels import WANDER
from deploynas.profile.refresh import NUM_NETWORKS
from deploynas.search import STRATEGIES, Budget, Effort, Plan
from deploynas.workflows.chosen import open_saved
from deploynas.workflows.exporting import export
from deploynas.workflows.search import Opened, search
from deploynas.workflows.supernets import data_record
from deploynas.workflows.target import Drifts, Target, Tell

pytestmark = pytest.mark.slow
SLOWER = 1.07


class ByWork:
    """A judge by which more work is better; it may be stopped."""

    identity, kind, num_finalists = "by work", "measured", 1

    def __init__(self, space, most=None):
        self.space, self.most, self.asked = space, most, 0

    def quick(self, archs):
        for macs in self.space.macs(archs):
            self.asked += 1
            if self.most is not None and self.asked > self.most:
                raise KeyboardInterrupt
            yield macs / 1e12

    def promising(self, archs, scores):
        return list(np.argsort(-scores, kind="stable"))

    def final(self, archs):
        return self.space.macs(archs) / 1e12


class Untrained:
    """Networks as they are built."""

    num_evaluations, at_once, beside, in_processes, more_seconds = 60, 1, False, False, 0.0
    identity = "untrained"

    def __init__(self, dataset, most=None):
        self.space = dn.space("mobile-small", dataset.num_classes, dataset.channels, [20])
        self.data, self._dataset, self._most = dataset.fingerprint, dataset, most

    def open(self, problem, plan, run, tell):
        return Opened(
            ByWork(self.space, self._most), lambda arch: dn.build(self.space, arch).eval(),
            data_record(self._dataset), "trained", run,
        )  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return load_digits((), seed=0, max_size=64)


@pytest.fixture
def made(digits, board_profile, board, tmp_path):
    """Profile, and the machine that became slower since."""
    profile = board_profile(Untrained(digits).space)
    path = profile.write(tmp_path / "board.json")
    return path, profile, board(profile.identity, SLOWER)


def searched(digits, limit, target, run, most=None):
    notes = []
    strategy = STRATEGIES.load("evolution")
    plan = Plan(strategy, strategy.options(), 0, Effort(60), beside=False)
    source = Untrained(digits, most)
    tell = Tell(note=notes.append)
    return search(Budget(latency_ms=limit), plan, source, target, run, tell), notes


def limit_in(profile, space):
    """In the middle of what it takes at the profile's own level."""
    model = LatencyModel(space, profile)
    return float(np.mean(model.predict_ms(np.concatenate([space.smallest(), space.largest()]))))


def test_the_budget_is_kept_on_the_machine_of_now(digits, made, tmp_path):
    path, profile, device = made
    space = Untrained(digits).space
    limit = limit_in(profile, space)
    result, notes = searched(digits, limit, Target(path, device), tmp_path / "run")
    assert any("7.0% slower than in its profile" in text for text in notes)
    assert device.asked[0] == NUM_NETWORKS
    took = (0.001 * 1 + result.best.macs / 1e7) * SLOWER
    assert 0.9 * limit < took <= limit
    assert result.best.predicted_latency_ms == pytest.approx(took, rel=1e-3)
    assert result.drift.factor == pytest.approx(SLOWER)
    assert (result.core_ms, result.memory_ms) == (1.0, 1.0)
    assert result.measured_latency_ms == pytest.approx(took, rel=1e-3)
    assert not Drifts.file_in(tmp_path / "run").exists()  # the next search asks anew

    manifest = export(result, open_saved(tmp_path / "run", result, digits), tmp_path / "export")
    assert manifest.drift == result.drift
    assert manifest.at_profile_ms == pytest.approx(took / SLOWER, rel=1e-3)
    device.factor = 1.2  # by the time of a check
    read = Manifest.read(tmp_path / "export" / "manifest.json")
    expected = expected_now(read, device)
    assert expected.latency_ms == pytest.approx(took / SLOWER * 1.2, rel=1e-3)
    assert expected.drift.factor == pytest.approx(1.2)
    path.unlink()
    assert expected_now(read, device) is None


def test_a_search_that_goes_on_believes_the_same_machine(digits, made, tmp_path):
    path, profile, device = made
    limit = limit_in(profile, Untrained(digits).space)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        searched(digits, limit, Target(path, device), run, most=20)
    (kept,) = Drifts.read(Drifts.file_in(run)).drifts.values()
    assert kept.factor == pytest.approx(SLOWER)
    device.factor, device.asked = 1.0, []
    result, notes = searched(digits, limit, Target(path, device), run)
    assert NUM_NETWORKS not in device.asked  # its finalists alone
    assert result.drift == kept
    assert any("7.0% slower" in text for text in notes)
    other, _ = searched(digits, limit, Target(path, device), run)
    assert other.drift.factor == pytest.approx(1.0)
    assert other.job == result.job


def test_another_search_in_a_run_asks_anew(digits, made, tmp_path):
    path, profile, device = made
    limit = limit_in(profile, Untrained(digits).space)
    for factor, share in ((SLOWER, 1.0), (0.95, 0.9)):
        device.factor = factor
        with pytest.raises(KeyboardInterrupt):
            searched(digits, share * limit, Target(path, device), tmp_path, most=20)
        (kept,) = Drifts.read(Drifts.file_in(tmp_path)).drifts.values()
        assert kept.factor == pytest.approx(factor)


def test_without_a_refresh_the_bound_is_wide(digits, made, tmp_path):
    path, profile, device = made
    limit = limit_in(profile, Untrained(digits).space)
    for target in (Target(path, device, refreshes=False), Target(path)):
        notes = []
        tell = Tell(note=notes.append)
        problem = target.problem(Untrained(digits).space, Budget(latency_ms=limit), tell)
        problem = target.refreshed(problem, tell)
        assert problem.model.drift.factor == 1.0
        assert problem.model.half_width >= WANDER
        assert any("nothing was measured" in text and "7.0%" in text for text in notes)
    assert device.asked == []


def test_a_machine_that_is_another_is_told(digits, made):
    path, profile, device = made
    device.factor = 1.6
    notes = []
    target, tell = Target(path, device), Tell(note=notes.append)
    target.refreshed(target.problem(Untrained(digits).space, Budget(), tell), tell)
    told = next(text for text in notes if "more than a machine drifts" in text)
    assert f"rm {path} && deploynas profile" in told
    assert f"--output {path}" in told
