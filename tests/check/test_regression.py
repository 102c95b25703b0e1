"""Comparing a model with a baseline: verdicts by whole intervals, records, refusals."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

import deploynas as dn
from deploynas.check import Baseline, LatencyRecord, check, junit, markdown, percentage, regression
from deploynas.check.regression import RECORD_MARGIN, against, decide, looks
from deploynas.device import Estimate, Level, LocalDevice, Samples
from deploynas.errors import DeviceMismatchError, InvalidInputError, MissingFileError
from deploynas.graph import RandomWeights, write_model
from deploynas.onboard.timing import t_quantile

pytestmark = pytest.mark.usefixtures("short_sessions")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The smallest and the largest network of a space, and one of another side."""
    folder = tmp_path_factory.mktemp("models")
    space = dn.space("mobile-small", resolutions=[28])
    other = dn.space("mobile-small", resolutions=[20])
    made = {
        "small": space.layers(space.smallest()[0]),
        "large": space.layers(space.largest()[0]),
        "other": other.layers(other.smallest()[0]),
    }
    return {
        name: write_model(folder / f"{name}.onnx", nodes, RandomWeights(0))
        for name, nodes in made.items()
    }


@pytest.fixture(scope="module")
def record(models):
    """Of the small network, measured as a user's is: its interval never gets narrower."""
    return check(models["small"], LocalDevice()).record


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1.051, 1.09, "regressed"), (1.02, 1.05, "pass"), (0.9, 0.95, "pass"),
     (1.04, 1.06, "inconclusive"), (0.9, 1.2, "inconclusive")],
)  # fmt: skip
def test_the_whole_interval_decides(low, high, expected):
    assert decide(Estimate((low + high) / 2, low, high, 100), 0.05) == expected


def test_looks_spend_what_one_look_may_err():
    first = list(itertools.islice(looks(), 40))
    assert [sessions for sessions, _ in first[:6]] == [3, 4, 6, 9, 13, 19]
    assert [confidence for _, confidence in first[:3]] == [0.975, 0.9875, 0.99375]
    assert sum(1 - confidence for _, confidence in first) == pytest.approx(0.05)


@pytest.mark.long
def test_the_gate_errs_as_rarely_as_it_says():
    """1,000 simulated decisions a scene, by the benchmark's command: two standard errors more."""
    script = Path(__file__).parents[2] / "benchmarks" / "gate.py"
    found = json.loads(
        subprocess.run(
            [sys.executable, script, "--simulate", "--quick", "--json"],
            capture_output=True, text=True, check=True,
        ).stdout
    )  # fmt: skip
    for kind in ("1 %", "as measured"):
        # wider than need be where sessions scatter with long tails
        assert all(0.935 <= share <= 0.985 for share in found["coverage"][kind].values())
        scenes = found["decisions"][kind]
        for scene in ("+5 %, limit 5 %", "equal, limit 0 %"):
            assert max(scenes[scene]["pass"], scenes[scene]["regressed"]) <= 0.025 + 0.01
        assert scenes["equal, limit 5 %"]["regressed"] <= 0.005
        assert scenes["+10 %, limit 5 %"]["pass"] <= 0.005
        assert scenes["equal, limit 2 %"]["regressed"] <= 0.01
    quiet = found["decisions"]["1 %"]
    for scene, right in (("equal, limit 5 %", "pass"), ("+10 %, limit 5 %", "regressed")):
        assert quiet[scene][right] >= 0.999
        assert quiet[scene]["sessions_median"] == 3


@pytest.mark.slow
def test_a_slower_model_regresses_and_a_faster_one_does_not(models):
    device = LocalDevice()
    slower = against(device, models["large"], Baseline(models["small"]))
    assert slower.outcome == "regressed"
    assert 1.05 < slower.ratio.low <= slower.ratio.median <= slower.ratio.high
    assert slower.ratio == slower.looks[-1].ratio
    expected = list(itertools.islice(looks(), len(slower.looks)))
    assert [(look.sessions, look.confidence) for look in slower.looks] == expected
    assert all(decide(look.ratio, 0.05) == "inconclusive" for look in slower.looks[:-1])
    faster = against(device, models["small"], Baseline(models["large"]))
    assert faster.outcome == "pass"
    assert faster.ratio.low <= 1 / slower.ratio.low
    assert faster.ratio.high >= 1 / slower.ratio.high
    result = check(models["large"], device, baseline=Baseline(models["small"]))
    assert result.verdict == "regressed"
    assert result.regression.ratio.median > 1.05


@pytest.mark.slow
def test_a_limit_that_nothing_can_tell_ends_with_the_timeout(models):
    equal = Baseline(models["small"], max_regression=0.0, timeout_seconds=0.1)
    for _ in range(3):  # equal models: the interval holds 1 in 97.5 %, of few sessions too
        found = against(LocalDevice(), models["small"], equal)
        if found.outcome == "inconclusive":
            assert [look.sessions for look in found.looks] == [3]
            return
    pytest.fail("three times an interval of equal models lay beside 1")


def test_the_last_look_is_where_the_time_is_over(models, monkeypatch):
    """A second a session, of 7.5: looks after 3, 4 and 6 sessions, and after the eighth."""
    clock = [0.0]

    def one_session(device, files, rule, *, samples):
        for name in files:
            one = samples.setdefault(name, Samples(1000))
            ms = 1.0 + 0.1 * (len(one.ms) % 2) * (name == "candidate")
            one.add(True, ms, Level(1.0, 1.0))
        assert rule.max_seconds == 7.5 / 3
        clock[0] += 1.0

    monkeypatch.setattr(regression, "measure", one_session)
    monkeypatch.setattr(regression, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    found = against(LocalDevice(), models["small"], Baseline(models["small"], 0.05, 7.5))
    assert [look.sessions for look in found.looks] == [3, 4, 6, 8]
    assert found.outcome == "inconclusive"  # half of the sessions say 1, the others 1.1
    assert found.ratio.median == pytest.approx(1.1**0.5)
    half = t_quantile(1 - 0.05 / 16, 7) * math.log(1.1) / math.sqrt(4 * 7)
    assert found.ratio.high == pytest.approx(1.1**0.5 * math.exp(half))


def test_the_interval_against_a_record_by_hand(models):
    """Now twice as slow, without scatter; the record's two sessions differ by 2 %."""
    device = LocalDevice()
    then = Samples(1000, [[1.0], [math.exp(0.02)]], [[1.0]] * 2, [[1.0]] * 2)
    now = Samples(1000, [[2.0], [2.0], [2.0]], [[1.0]] * 3, [[1.0]] * 3)
    record = LatencyRecord.of(device, models["small"], then)
    ratio = regression._of_record(now, record, 0.975)
    assert ratio.median == pytest.approx(2 * math.exp(-0.01), rel=1e-6)
    # Student's quantile for one degree of freedom at 97.5 %, times half of the difference
    half = 25.4516996 * 0.01 + RECORD_MARGIN
    assert math.log(ratio.high / ratio.median) == pytest.approx(half, rel=1e-4)
    assert math.log(ratio.median / ratio.low) == pytest.approx(half, rel=1e-4)


@pytest.mark.slow
def test_against_a_record(models, record, signed, tmp_path):
    device = LocalDevice()
    path = tmp_path / "record.json"
    record.write(path)
    again = against(device, models["small"], Baseline(path, max_regression=1.0))
    assert again.outcome == "pass"
    assert again.ratio.low < again.ratio.median * (1 - RECORD_MARGIN / 2)
    slower = against(device, models["large"], Baseline(path))
    assert slower.outcome == "regressed"
    document = json.loads(path.read_text())
    document["identity"]["processor"] = "another"
    path.write_text(signed(document))
    with pytest.raises(DeviceMismatchError, match="processor: another"):
        against(device, models["small"], Baseline(path))
    allowed = Baseline(path, allow_other_device=True)
    assert against(device, models["large"], allowed).outcome == "inconclusive"


@pytest.mark.slow
def test_a_slower_machine_is_taken_out_of_a_record(models, record, tmp_path):
    """A record whose references took half as long: of a machine at twice the clock."""
    device = LocalDevice()
    samples = record.samples
    halved = {
        name: tuple(tuple(v / 2 for v in session) for session in getattr(samples, name))
        for name in ("ms", "core_ms", "memory_ms")
    }
    level = record.level.model_copy(
        update={"core_ms": record.level.core_ms / 2, "memory_ms": record.level.memory_ms / 2}
    )
    quick = record.model_copy(
        update={"samples": samples.model_copy(update=halved), "level": level}
    )
    path = tmp_path / "quick.json"
    quick.write(path)
    found = against(device, models["small"], Baseline(path, max_regression=0.9))
    assert found.outcome == "pass"  # with the level left in, the ratio is 2
    assert found.ratio.median == pytest.approx(1, abs=0.3)


def test_refusals(models, tmp_path):
    device = LocalDevice()
    with pytest.raises(MissingFileError):
        against(device, models["small"], Baseline(tmp_path / "none.onnx"))
    with pytest.raises(InvalidInputError, match="do not compare"):
        against(device, models["small"], Baseline(models["other"]))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x00no model")
    with pytest.raises(InvalidInputError, match="not an ONNX file"):
        against(device, models["small"], Baseline(broken))
    not_a_record = tmp_path / "x.json"
    not_a_record.write_text("{}")
    with pytest.raises(InvalidInputError, match="latency-record"):
        against(device, models["small"], Baseline(not_a_record))


@pytest.mark.slow
def test_the_gravest_verdict_wins(models):
    size = models["large"].stat().st_size
    result = check(
        models["large"],
        LocalDevice(),
        baseline=Baseline(models["small"]),
        limits={"file_bytes": size - 1},
    )
    assert result.verdict == "failed-gate"
    assert result.reason == f"{size:,} where {size - 1:,} is allowed"
    assert [(g.name, g.verdict) for g in result.gates] == [
        ("regression", "regressed"), ("size", "failed-gate"), ("outputs", "pass"),
    ]  # fmt: skip
    text = markdown(models["large"], "a device", result)
    assert text.startswith("### large.onnx: failed")
    assert "| regression | regressed |" in text
    suite = ElementTree.fromstring(junit(models["large"], result))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "2", "0")
    failures = [case.find("failure") for case in suite]
    assert [f.get("type") for f in failures[:2]] == ["regressed", "failed-gate"]
    assert failures[2] is None
    assert "| slower layer | before | now |" in text
    within = check(models["small"], LocalDevice(), limits={"latency_ms": 1e-6, "file_bytes": size})
    assert within.verdict == "over-budget"


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.05", 0.05), (" 2.5 %", 0.025)])
def test_percentages(text, value):
    assert percentage(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["five", "-1%", "nan", "inf", ""])
def test_impossible_percentages(text):
    with pytest.raises(InvalidInputError, match="written 5%"):
        percentage(text)
