"""One network on several runtimes: fakes that take what they are told to, and a real pair."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

from deploynas.check import across
from deploynas.check.across import _interleaved, _ratio
from deploynas.cli.main import app
from deploynas.device import LocalDevice
from deploynas.errors import DeviceError, InvalidInputError, ModelError
from deploynas.graph.emit import RandomWeights, write_model
from deploynas.onboard.timing import Level, Round
from deploynas.spaces.layers import Layer, chain

pytestmark = pytest.mark.slow

LEVEL = Level(1.0, 1.0)


class Fake:
    """A device whose rounds take ``ms``, give or take a share of it."""

    def __init__(self, name, ms, log, scatter=0.01, wrong=0.0, refuses=False):
        self.identity = LocalDevice("cpu").identity
        self.closed = 0
        self._name, self._ms, self._log, self._scatter = name, ms, log, scatter
        self._wrong, self._refuses = wrong, refuses
        self._rng = np.random.default_rng(len(name))

    def answers(self, model, feeds):
        if self._refuses:
            raise ModelError("fake", model.stem, "Erf (node 3): it has no such operator")
        session = onnxruntime.InferenceSession(str(model))
        found = [session.run(None, dict(one)) for one in feeds]
        return [[output + self._wrong * output.std() for output in one] for one in found]

    def opening(self, model, times):
        return 1000, 2.0

    def rounds(self, models, rule, samples, seed):
        assert rule.min_sessions == len(samples["model"].ms) + 1
        try:
            for number in range(rule.rounds):
                self._log.append(self._name)
                ms = self._ms * (1 + self._scatter * self._rng.standard_normal())
                samples["model"].add(number == 0, ms, LEVEL)
                yield Round(number, {"model": (ms, LEVEL)}, 0.5, 0.0)
        finally:
            self.closed += 1


@pytest.fixture
def model(tmp_path):
    layers = [Layer("conv", 3, 8, 16, 16, kernel_size=3, stride=2)]
    layers.append(Layer("head", 8, 10, 8, 8))
    return write_model(tmp_path / "model.onnx", chain(layers), RandomWeights())


def test_the_fastest_first_and_the_ratios_to_it(model):
    log = []
    found = across(model, {"slow": Fake("slow", 3.0, log), "fast": Fake("fast", 2.0, log)})
    assert list(found.standings) == ["fast", "slow"]
    assert found.standings["fast"].ratio is None
    ratio = found.standings["slow"].ratio
    assert ratio.low < 1.5 < ratio.high or ratio.median == pytest.approx(1.5, rel=0.01)
    assert (found.advice, found.verdict) == ("take fast", "pass")
    # a round on each in turn, in any order
    assert all(set(log[i : i + 2]) == {"slow", "fast"} for i in range(0, len(log), 2))


def test_what_cannot_be_told_apart_is_said(model):
    found = across(model, {name: Fake(name, 2.0, [], 0.05) for name in ("this", "other")})
    assert set(found.standings) == {"this", "other"}
    assert "cannot be told apart" in found.advice


class Scattered:
    """A device that takes as long as others, but a session of it may be some per cent off."""

    def __init__(self, rng):
        self._rng = rng

    def rounds(self, models, rule, samples, seed):
        session = np.exp(0.05 * self._rng.standard_normal())
        for number in range(3):
            ms = session * (1 + 0.005 * self._rng.standard_normal())
            samples["model"].add(number == 0, ms, LEVEL)
            yield Round(number, {"model": (ms, LEVEL)}, 0.5, 0.0)


@pytest.mark.parametrize("count", [2, 3])
def test_equal_ones_are_told_apart_in_few_cases(count, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "model.onnx").write_bytes(b"")
    names, told, times = "abcd"[:count], 0, 300
    for _ in range(times):
        devices = {name: Scattered(rng) for name in names}
        samples, confidence = _interleaved(
            devices, list(names), tmp_path / "model.onnx", lambda text, share: None
        )
        fastest = min(samples, key=lambda name: samples[name].estimate().median)
        others = [samples[name] for name in names if name != fastest]
        told += any(_ratio(one, samples[fastest], confidence).low > 1 for one in others)
    assert told / times <= 0.05


def test_what_answers_otherwise_is_not_waited_for(model):
    """It is as fast as nobody, and told from nobody: the others are measured no longer for it."""
    log = []
    devices = {
        "wrong": Fake("wrong", 2.0, log, wrong=1e-3), "right": Fake("right", 2.0, log, 0.05),
    }  # fmt: skip
    found = across(model, devices)
    assert (found.advice, log.count("right")) == ("take right", 3 * 20)


def test_what_answers_otherwise_is_not_taken(model):
    wrong = Fake("wrong", 1.0, [], wrong=1e-3)
    found = across(model, {"wrong": wrong, "right": Fake("right", 2.0, [])})
    assert found.advice == "take right"
    assert found.standings["wrong"].gate.verdict == "failed-gate"
    assert found.standings["wrong"].ratio.median == pytest.approx(0.5, rel=0.05)
    assert found.standings["wrong"].parity == pytest.approx(1e-3, rel=0.3)
    assert "take none" in across(model, {"wrong": wrong}).advice


def test_what_rounds_otherwise_is_taken_of_an_int8_file(int8):
    devices = {name: Fake(name, 2.0, [], wrong=share) for name, share in (("a", 0.1), ("b", 0.3))}
    found = across(int8, devices)
    assert found.standings["a"].gate.verdict == "pass"
    assert found.standings["b"].gate.verdict == "failed-gate"


def test_a_budget_is_judged_on_each(model):
    devices = {"fast": Fake("fast", 2.0, []), "slow": Fake("slow", 3.0, [])}
    found = across(model, devices, budget_ms=2.5)
    assert [one.gate.verdict for one in found.standings.values()] == ["pass", "over-budget"]
    assert across(model, devices, budget_ms=1.0).verdict == "over-budget"


def test_one_that_cannot_run_it_is_named(model):
    lame = Fake("lame", 1.0, [], refuses=True)
    found = across(model, {"lame": lame, "able": Fake("able", 2.0, [])})
    assert list(found.standings) == ["able"]
    assert "Erf (node 3)" in found.refused["lame"]
    with pytest.raises(DeviceError, match="none of lame runs .*Erf"):
        across(model, {"lame": lame})


def test_a_runtimes_own_file_is_of_that_runtime(tmp_path):
    own = tmp_path / "model.param"
    own.write_text("7767517")
    own.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="runs on ncnn alone .name its ONNX file"):
        across(own, {})


def test_workers_are_closed_when_one_fails(model):
    class Dies(Fake):
        def rounds(self, *arguments):
            yield next(super().rounds(*arguments))
            raise DeviceError("gone")

    other = Fake("other", 2.0, [])
    with pytest.raises(DeviceError, match="gone"):
        across(model, {"dies": Dies("dies", 1.0, []), "other": other})
    assert other.closed == 1


@pytest.mark.long
def test_two_real_runtimes(model):
    pytest.importorskip("ncnn")
    arguments = ["check", str(model), "--on", "cpu,ncnn", "--json"]
    document = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert set(document["devices"]) == {"cpu", "ncnn"}
    for one in document["devices"].values():
        assert one["parity"] < 1e-4
        assert one["verdict"] == "pass"
        assert one["latency_ms"]["median"] > 0
        assert one["file_bytes"] > 1000
        assert one["load_ms"] > 0
    assert document["advice"].startswith("take ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--on", "cpu"], "two or more different devices"),
        (["--on", "cpu,cpu"], "two or more different devices"),
        (["--on", "cpu,nothing"], "unknown device of this machine 'nothing'"),
        (["--on", "cpu,web", "--baseline", "x.onnx"], "leave out --baseline"),
        (["--on", "cpu,web", "--max-size", "5MB"], "no limit but --latency-ms"),
    ],
)
def test_what_is_refused(options, said, model):
    result = CliRunner().invoke(app, ["check", str(model), *options])
    assert result.exit_code == 1
    assert said in str(result.exception or result.output)
