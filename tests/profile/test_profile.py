"""Profiles on the real device: additive, resumable, refusing what does not fit."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deploynas.device import Estimate, LocalDevice, StopRule
from deploynas.errors import (
    DeviceMismatchError,
    IncompleteProfileError,
    InvalidInputError,
    OutputError,
)
from deploynas.onboard.timing import typical_level
from deploynas.profile import DeviceProfile, LatencyModel, profile_space, profiler, shipped
from deploynas.profile.device_profile import JournalHead, JournalRound, open_journal
from deploynas.profile.latency_model import conformal_margin, fit, judge, kendall_tau
from deploynas.profile.refresh import NUM_NETWORKS, refresh
from deploynas.profile.validate import Judgement, fresh_archs, profiled_spaces
from deploynas.spaces import space

pytestmark = pytest.mark.slow

SPACE = space("mobile-small", 10, 1, [20])
SHORT = StopRule(min_sessions=2, max_sessions=2, rounds=4)
KEY = "fp32/mobile-small/10/1"


@pytest.fixture(scope="module")
def profile_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "cpu.json"
    with pytest.MonkeyPatch.context() as patched:  # real samples, few of them
        patched.setattr(profiler, "NETWORK_RULE", SHORT)
        patched.setattr(profiler, "LAYER_RULE", SHORT)
        profile, measured = profile_space(SPACE, LocalDevice(), path)
    assert measured == len(SPACE.layer_table) == len(profile.layers)
    return path


@pytest.mark.slow
def test_second_run_measures_nothing_and_keeps_the_file(profile_path: Path) -> None:
    before = DeviceProfile.load(profile_path)
    after, measured = profile_space(SPACE, LocalDevice(), profile_path)
    assert measured == 0
    assert after.layers == before.layers
    assert after.networks == before.networks
    assert after.validations == before.validations  # and as old as it was
    assert profile_path.stat().st_ctime - 600 < (before.validations[KEY].made or 0) < time.time()


def test_a_real_device_tells_its_drift(profile_path: Path) -> None:
    model = LatencyModel(SPACE, DeviceProfile.load(profile_path))
    drift = refresh(model, LocalDevice(), rule=SHORT)
    assert drift.num_networks == NUM_NETWORKS
    assert 0.1 < drift.factor < 10  # whatever else runs
    assert drift.spread > 0
    assert drift.profiled == model.validation.made
    now = model.at(drift)
    archs = SPACE.smallest()
    assert now.predict_ms(archs) == pytest.approx(drift.factor * model.predict_ms(archs))


def test_a_profile_is_at_the_level_of_all_its_minutes(profile_path: Path) -> None:
    profile = DeviceProfile.load(profile_path)
    records = [*profile.layers.values(), *profile.networks[KEY]]
    assert profile.reference == typical_level([record.samples.thaw() for record in records])


def test_prediction_equals_the_fitted_regression(profile_path: Path) -> None:
    profile = DeviceProfile.load(profile_path)
    model = LatencyModel(SPACE, profile)
    records = profile.networks[KEY]
    measured = np.array([profile.estimate(r.samples).median for r in records])
    predicted = model.predict_ms(SPACE.encode([r.architecture for r in records]))
    noise = profile.validations[KEY].noise_floor  # of short sessions, perhaps beside others
    # in the fitted range a model that lost its intercept is off by far more
    assert np.median(np.abs(predicted / measured - 1)) < max(0.05, noise)
    assert kendall_tau(predicted, measured) > 0.8


def test_incomplete_profile_names_layer_and_command(profile_path: Path) -> None:
    profile = DeviceProfile.load(profile_path)
    with pytest.raises(IncompleteProfileError, match=r"conv:1-16@28x28.*deploynas profile"):
        LatencyModel(space("mobile-small", 10, 1, [28]), profile)
    held = profile.restrict(space("mobile-small", 10, 1, [20, 28]))
    assert held.resolutions == (20,)


def test_other_device_is_refused(profile_path: Path) -> None:
    document = json.loads(profile_path.read_text())
    document["identity"]["processor"] = "another"
    other = profile_path.with_name("other.json")
    other.write_text(json.dumps(document))
    with pytest.raises(DeviceMismatchError, match="processor"):
        profile_space(SPACE, LocalDevice(), other)
    assert json.loads(other.read_text()) == document


LAYER = ("layers", f"fp32/{SPACE.layer_table[0].key}")
NETWORK = ("networks", KEY, 0)
VALIDATION = ("validations", KEY)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ((*LAYER, "samples", "ms", 0, 0), 0.0),
        ((*LAYER, "samples", "ms", 0, 0), -1.0),
        ((*LAYER, "samples", "core_ms", 0, 0), float("nan")),
        ((*LAYER, "samples", "ms", 0), []),
        ((*LAYER, "samples", "memory_ms", 0), [1.0]),
        ((*LAYER, "samples", "core_ms"), []),
        ((*LAYER, "macs"), -1),
        (("level",), None),
        (("level", "core_ms"), float("inf")),
        (("networks", KEY), []),
        (("networks", "fp32/mobile-small/ten/1"), []),
        ((*NETWORK, "architecture", "resolution"), [20]),
        ((*NETWORK, "architecture"), {}),
        ((*VALIDATION, "margin"), -1.0),  # would admit what is over budget
        ((*VALIDATION, "margin"), float("nan")),
        ((*VALIDATION, "kendall_tau"), 1.5),
        (("identity", "threads"), "many"),
        (("comment",), "mine"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(
    profile_path: Path, tmp_path: Path, where: tuple[str | int, ...], value: object
) -> None:
    document = json.loads(profile_path.read_text())
    place = document
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidInputError, match=r"edited\.json is damaged or was edited"):
        DeviceProfile.load(path)


def test_a_newer_profile_is_refused(profile_path: Path, tmp_path: Path) -> None:
    document = json.loads(profile_path.read_text())
    path = tmp_path / "newer.json"
    path.write_text(json.dumps(document | {"version": DeviceProfile.VERSION + 1}))
    with pytest.raises(InvalidInputError, match="upgrade deploynas"):
        DeviceProfile.load(path)


def test_an_uncalibrated_resolution_is_not_predicted(profile_path: Path) -> None:
    """What a run leaves that was interrupted after its layers."""
    profile = DeviceProfile.load(profile_path)
    records = [r.model_copy(update={"architecture": r.architecture | {"resolution": 24}})
               for r in profile.networks[KEY]]  # fmt: skip
    elsewhere = profile.model_copy(update={"networks": {KEY: tuple(records)}})
    with pytest.raises(IncompleteProfileError, match=r"mobile-small at 20 px \(add it: .*profile"):
        LatencyModel(SPACE, elsewhere)


def test_truncated_profile_is_refused(profile_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "truncated.json"
    path.write_text(profile_path.read_text()[:1000])
    with pytest.raises(InvalidInputError, match="truncated"):
        DeviceProfile.load(path)


def test_two_profilers_cannot_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    with open_journal(path), pytest.raises(OutputError, match="another deploynas process"):
        profile_space(SPACE, LocalDevice(), path)


def test_a_journal_that_its_owner_removed_is_not_held(tmp_path: Path) -> None:
    """Two waiting profilers must not both go on when the first one ends."""
    path = tmp_path / "cpu.json"
    opened = fcntl.flock

    def owner_ends_first(file: object, flags: int) -> None:
        path.with_name("cpu.json.journal").unlink()
        opened(file, flags)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", owner_ends_first)
        with pytest.raises(OutputError, match="another deploynas process"), open_journal(path):
            pass


def test_validation_judges_fresh_networks(profile_path: Path) -> None:
    profile = DeviceProfile.load(profile_path)
    archs = fresh_archs(SPACE, profile, 500)
    known = SPACE.encode([r.architecture for r in profile.networks[KEY]])
    assert len(archs) == 500
    assert not {row.tobytes() for row in archs} & {row.tobytes() for row in known}
    assert np.array_equal(archs[:5], fresh_archs(SPACE, profile, 5))
    assert not np.array_equal(archs[:5], fresh_archs(SPACE, profile, 5, seed=1))


def test_validation_table() -> None:
    measured = [Estimate(ms, ms * 0.99, ms * 1.01, 10) for ms in (1.0, 2.0, 3.0, 4.0)]
    measured.append(Estimate(5.0, 4.0, 6.0, 10))
    actual = np.arange(1.0, 6.0)
    predicted = actual * [1.1, 1.0, 1.0, 1.0, 0.8]
    judgement = Judgement(np.zeros((5, 1)), predicted, actual * 1.5, measured, 0.02)
    assert judgement.bias == pytest.approx(-0.02)
    assert judgement.worst == pytest.approx(0.2)
    assert judgement.sum_mape == pytest.approx(0.5)
    assert judgement.num_unstable == 1
    assert judgement.table.mape == pytest.approx(0.06)
    assert judgement.table.within_5_percent == pytest.approx(0.6)


@pytest.mark.long
def test_killed_profile_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpu.json"
    code = (
        "import sys; from pathlib import Path; from deploynas.device import LocalDevice;"
        "from deploynas.profile import profile_space; from deploynas.spaces import space;"
        "profile_space(space('mobile-small', 10, 1, [20]), LocalDevice(), Path(sys.argv[1]), "
        "soft_seconds=10)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    journal = path.with_name("cpu.json.journal")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and len(journal.read_text().splitlines()) > 16:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = journal.read_text().splitlines() if journal.exists() else []
    assert len(before) > 16, "the profile was not caught in the middle"
    first = json.loads(before[1])["touches"]
    monkeypatch.setattr(profiler, "NETWORK_RULE", SHORT)
    profile, _ = profile_space(SPACE, LocalDevice(), path, soft_seconds=0)
    assert not journal.exists()
    for name, (ms, _, _) in list(first.items())[:5]:
        assert profile.layers[name].samples.ms[0][0] == pytest.approx(ms, abs=1e-6)


NOT_RECORDS = (
    b"5", b"[1,2]", b"null", b'"text"', b"{}", b"\xff\xfe", b"[" * 5_000,
    b'{"first":true,"bytes":{},"touches":{"a":["1.0",1.0,1.0]}}',
    b'{"first":true,"bytes":{},"touches":{"a":[-1.0,1.0,1.0]}}',
    b'{"first":true,"bytes":{},"touches":{"a":[NaN,1.0,1.0]}}',
)  # fmt: skip


def one_round(ms: float) -> JournalRound:
    return JournalRound(first=True, bytes={"a": 100}, touches={"a": (ms, 1.0, 1.0)})


def test_a_torn_line_loses_itself_and_nothing_after_it(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    with open_journal(path) as journal:
        journal.append(JournalHead(identity={"device": "cpu"}))
        journal.append(one_round(1.0))
        file = journal.path
    whole = file.read_bytes()
    for length in range(whole.index(b"\n") + 1, len(whole)):
        file.write_bytes(whole[:length])
        with open_journal(path) as journal:
            assert [type(entry) for entry in journal.entries] == [JournalHead]
            assert journal.num_cut == 0
            journal.append(one_round(2.0))
        with open_journal(path) as journal:
            assert journal.entries[1:] == [one_round(2.0)]


@pytest.mark.parametrize("line", NOT_RECORDS, ids=range(len(NOT_RECORDS)))
def test_lines_that_are_no_records_are_cut_off(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "cpu.json"
    with open_journal(path) as journal:
        journal.append(JournalHead(identity={"device": "cpu"}))
        journal.append(one_round(1.0))
        file = journal.path
    file.write_bytes(file.read_bytes() + line + b"\n" + one_round(3.0).model_dump_json().encode())
    with open_journal(path) as journal:
        assert journal.entries[1:] == [one_round(1.0)]
        assert journal.num_cut == 1
        journal.append(one_round(2.0))
    with open_journal(path) as journal:
        assert journal.entries[1:] == [one_round(1.0), one_round(2.0)]


def test_edited_lines_of_a_journal_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    with open_journal(path) as journal:
        journal.append(JournalHead(identity={"device": "cpu"}))
        for ms in (1.0, 2.0, 3.0):
            journal.append(one_round(ms))
        file = journal.path
    lines = file.read_bytes().splitlines(keepends=True)
    for edited in (
        [*lines[:2], lines[2].replace(b"2.0", b"0.2"), lines[3]],
        [*lines[:2], lines[3]],
        [*lines[:2], lines[3], lines[2]],
        [*lines[:2], b"{" + lines[2].partition(b",")[2]],
    ):
        file.write_bytes(b"".join(edited))
        with open_journal(path) as journal:
            assert journal.entries[1:] == [one_round(1.0)]
            assert journal.num_cut == len(edited) - 2


def test_a_journal_of_before_the_digests_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    rounds = [one_round(1.0), one_round(2.0)]
    with open_journal(path) as journal:
        file = journal.path
    file.write_text("".join(one.model_dump_json() + "\n" for one in rounds))
    with open_journal(path) as journal:
        journal.append(one_round(3.0))
    with open_journal(path) as journal:
        assert journal.entries == [*rounds, one_round(3.0)]


@pytest.mark.slow
def test_a_damaged_journal_blocks_no_profile(tmp_path: Path, short_sessions: None) -> None:
    path = tmp_path / "cpu.json"
    path.with_name("cpu.json.journal").write_bytes(b"5\nnull\n\xff")
    device = LocalDevice()
    profile, _ = profile_space(SPACE, device, path, budget_minutes=0.02, soft_seconds=0)
    assert len(profile.layers) == len(SPACE.layer_table)
    assert "2 lines" in " ".join(device.notes)


def test_journals_of_names_with_dots_are_their_own(tmp_path: Path) -> None:
    names = ("pi-2.4GHz", "pi-2.8GHz", "p.journal", "cpu.json")
    with contextlib.ExitStack() as stack:
        journals = [stack.enter_context(open_journal(tmp_path / name)) for name in names]
        paths = {journal.path.name for journal in journals}
    assert len(paths) == len(names)
    assert not paths & set(names)


def test_fit_takes_a_power_only_where_no_sum_will_do() -> None:
    """Large networks that a cache does not hold are slower than any sum of their layers."""
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 6, 45)
    features = np.stack([np.ones(45), base, rng.uniform(1, 3, 45), rng.uniform(1, 3, 45)], axis=1)
    noise = np.exp(rng.normal(0, 0.01, 45))
    assert fit(features, (0.3 + 1.2 * base) * noise).power == 1
    measured = 0.1 * base**2 * noise
    bent = fit(features[:30], measured[:30])
    assert bent.power == 2
    predicted = bent(features[30:])
    assert np.abs(predicted / measured[30:] - 1).mean() < 0.02
    assert bent.to_ms(bent.to_terms(measured)) == pytest.approx(measured)
    order = np.argsort(features @ bent.weights)
    assert (np.diff(bent(features[order])) > 0).all()


def test_the_margin_is_a_share_of_the_prediction_and_corrected_for_few() -> None:
    ones = np.ones(39)
    longer = 1 + np.arange(1, 40) / 100
    assert conformal_margin(ones, longer) == pytest.approx(0.38)  # ceil(0.95 * 40)-th of 39
    assert conformal_margin(ones[:10], longer[:10]) == pytest.approx(0.10)  # few: the largest
    # 4 ms predicted, 5 measured: the prediction is 20 % too small, the bound must be 25 % above it
    assert conformal_margin(np.full(9, 4.0), np.full(9, 5.0)) == pytest.approx(0.25)


def test_the_margin_covers_the_next_network() -> None:
    """45 networks and the next, errors of any size: 95 % of 2,000 draws, by 0.5 %."""
    rng = np.random.default_rng(0)
    measured = np.exp(0.03 * rng.standard_t(3, (2_000, 46)))
    margins = [conformal_margin(np.ones(45), row[:45]) for row in measured]
    assert np.mean(np.abs(measured[:, 45] - 1) <= margins) == pytest.approx(44 / 46, abs=0.015)


@pytest.fixture(scope="module")
def real() -> DeviceProfile:
    """That ships: three resolutions, measured on a busy machine."""
    return DeviceProfile.load(shipped.locate(Path("shipped:xeon-onnxruntime")))


def test_a_space_of_fewer_resolutions_is_predicted_alike(real: DeviceProfile) -> None:
    whole = LatencyModel(space("mobile-small", 10, 1, [20, 24, 28]), real)
    part = LatencyModel(space("mobile-small", 10, 1, [24]), real)
    archs = part.space.sample(50, np.random.default_rng(0))
    same = whole.space.encode(part.space.decode(archs))
    assert part.predict_ms(archs) == pytest.approx(whole.predict_ms(same), rel=1e-12)
    assert part.upper_ms(archs) == pytest.approx(whole.upper_ms(same), rel=1e-12)
    assert part.intercept_term == whole.intercept_term


def test_the_bound_widens_beyond_the_calibrated_range(
    real: DeviceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LatencyModel(space("mobile-small", 10, 1, [24]), real)
    ratio = model.high_ms / model.low_ms
    predicted = np.array(
        [model.low_ms, model.high_ms, model.high_ms * ratio, model.low_ms / ratio]
    )
    monkeypatch.setattr(model, "predict_ms", lambda archs: predicted)
    upper = model.upper_ms(predicted)
    margin = model.half_width
    assert margin > model.bound.fit == real.validations[KEY].margin > 0
    assert upper / predicted - 1 == pytest.approx(np.array([1, 1, 2, 2]) * margin)
    assert [model.within_ms(limit) for limit in upper] == pytest.approx(predicted)
    everywhere = np.geomspace(model.low_ms / 100, model.high_ms * 100, 500)
    monkeypatch.setattr(model, "predict_ms", lambda archs: everywhere)
    assert (np.diff(model.upper_ms(everywhere)) > 0).all()


def test_a_profile_of_format_1_gets_the_margin_of_its_residual(
    profile_path: Path, tmp_path: Path
) -> None:
    document = json.loads(profile_path.read_text())
    validation = document["validations"][KEY]
    del validation["margin"], document["sha256"]
    validation["residual_95"] = 0.2
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document | {"version": 1}))
    assert DeviceProfile.load(path).validations[KEY].margin == pytest.approx(0.25)


def test_fit_recovers_a_scale_and_judge_counts() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 5, 40)
    features = np.stack([np.ones(40), base, rng.uniform(1, 3, 40)], axis=1)
    measured = 0.3 + 1.2 * base
    predicted = fit(features, measured)(features)
    assert np.abs(predicted / measured - 1).max() < 1e-3
    table = judge(measured * 1.1, measured, [0.01])
    assert table.mape == pytest.approx(0.1)
    assert table.within_5_percent == 0
    assert table.kendall_tau == 1


@pytest.mark.long
def test_int8_stands_beside_float(
    profile_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers and networks are of their own; a float profile is left as it was."""
    monkeypatch.setattr(profiler, "NUM_CALIBRATION", 12)  # quantizing each takes its time
    path = tmp_path / "both.json"
    path.write_bytes(profile_path.read_bytes())
    before = DeviceProfile.load(path)
    with pytest.raises(IncompleteProfileError, match="--precision int8"):
        LatencyModel(SPACE, before, "int8")
    profile, measured = profile_space(
        SPACE, LocalDevice(), path, precision="int8", budget_minutes=0.02, soft_seconds=0.0
    )
    assert measured == len(SPACE.layer_table)
    assert len(profile.layers) == len(before.layers) + measured
    assert {k: v for k, v in profile.layers.items() if k in before.layers} == before.layers
    model = LatencyModel(SPACE, profile, "int8")
    assert model.precision == "int8"
    assert (model.predict_ms(SPACE.sample(5, np.random.default_rng(0))) > 0).all()
    assert profiled_spaces(profile, "int8")[0].name == SPACE.name
    float_model = LatencyModel(SPACE, profile)
    both = np.concatenate([SPACE.smallest(), SPACE.largest()])
    assert not np.allclose(model.predict_ms(both), float_model.predict_ms(both))
