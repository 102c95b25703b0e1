"""The whole life of a call: loads, calls, memory, throughput, each of them a limit."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from deploynas import spaces
from deploynas.check import check, verdict
from deploynas.check.batch import batched
from deploynas.check.inputs import Given
from deploynas.check.life import LIVED, LifeReport, lived
from deploynas.check.limits import limits_from
from deploynas.cli.main import app
from deploynas.device import LocalDevice, open_device
from deploynas.errors import DeviceError, InvalidInputError
from deploynas.export.probe import answers_of, probes
from deploynas.graph import RandomWeights, write_model
from deploynas.graph.model_file import ModelFile
from deploynas.onboard import life
from deploynas.onboard.life import Life, LifeRule, dropped, paced, run_on

pytestmark = pytest.mark.slow

RULE = LifeRule(lives=2)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(
        verdict, "RULE", replace(verdict.RULE, min_sessions=1, max_sessions=1, rounds=1)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    space = spaces.space("mobile-small", num_classes=10, in_channels=3, resolutions=[32])
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    return write_model(path, space.layers(space.largest()[0]), RandomWeights())


def report(device, path, rule=RULE, batch=1):
    return lived(device, path, rule, batch, lambda text, share: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["cpu", pytest.param(f"exec:{shlex.quote(sys.executable)}", marks=pytest.mark.long)],
)
def test_a_life(name, model):
    found = report(open_device(name), model, LifeRule(lives=2, instances=2))
    assert len(found.lives) == 2
    told = {name: one for name, one in found.estimates.items() if one is not None}
    assert told.keys() >= LIVED.keys() - {"cold_load_ms"}  # a RAM disk is never cold
    assert all(one.low <= one.median <= one.high for one in told.values())
    ms = {name: told[name].median for name in ("call_ms", "call_p90_ms", "call_p99_ms")}
    assert 0 < ms["call_ms"] <= ms["call_p90_ms"] <= ms["call_p99_ms"]
    assert told["first_inference_ms"].median > ms["call_ms"]
    assert told["first_load_ms"].median > ms["call_ms"]
    size = model.stat().st_size
    assert told["inference_peak_bytes"].median > size
    assert told["load_peak_bytes"].median > size
    assert all(len(one.calls_ms) >= 100 for one in found.lives)
    shown = "\n".join(found.lines)
    assert all(name in shown for name in told)
    assert json.loads(json.dumps(found.document))["raw"][1]["calls_ms"] == found.lives[1].calls_ms


def test_instances_are_counted_while_all_of_them_run(monkeypatch):
    """Two that take 0.1 s a call beside each other do 20 a second, however late one begins."""
    ends = iter([[0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [0.25, 0.35, 0.45, 0.55]])

    class Running:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def run_on(self, seconds):
            return next(ends)

    monkeypatch.setattr(life, "open_worker", lambda *_: Running())
    found = life._together(lambda number: [], "none", Path("m"), "m", 0, 2)
    assert found == pytest.approx(20.0)


def test_calls_are_paced():
    started = []

    def call():
        started.append(time.monotonic())

    life_times = paced(call, 20.0)
    own = started[life.SETTLING_CALLS :]
    assert len(own) == len(life_times) >= life.LEAST_CALLS
    gaps = np.diff(own) * 1e3
    # late ones are made up for: on average as often as asked, whatever else runs here
    assert gaps.mean() == pytest.approx(20.0, rel=0.1)
    with pytest.raises(ValueError, match="a call takes .* so that none can start every 1 ms"):
        paced(lambda: time.sleep(0.005), 1.0)


def test_running_on_tells_when_each_call_ended():
    ends = run_on(lambda: time.sleep(0.001), 0.02)
    assert len(ends) >= 3
    assert sorted(ends) == ends
    assert ends[-1] - ends[0] >= 0.02


def test_files_are_dropped_from_the_cache(tmp_path):
    """Or it is said that they cannot be: as on a RAM disk."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1_000_000)
    if dropped([str(path)]):
        path.read_bytes()
        assert dropped([str(path)])
    assert not dropped([str(tmp_path / "none")])


def of(**changed):
    """A life of which every value is known."""
    fields = {
        "first_load_ms": 10.0, "warm_load_ms": 5.0, "first_inference_ms": 2.0,
        "calls_ms": [1.0] * 98 + [2.0, 3.0], "cold_load_ms": None, "load_peak_bytes": 5e6,
        "inference_peak_bytes": 8e6, "per_s": 500.0,
    }  # fmt: skip
    return Life(**{**fields, **changed})


class Known:
    """A device whose lives are known."""

    def __init__(self, *lives):
        self._lives = lives

    def lives(self, model, rule):
        yield from self._lives


def test_values_of_lives():
    lives = (of(), of(first_load_ms=12.1, inference_peak_bytes=8.2e6))
    found = report(Known(*lives), Path("m"), batch=4).estimates
    assert found["first_load_ms"].median == pytest.approx(11.0)
    assert found["inference_peak_bytes"].median == pytest.approx(8.1e6)
    assert found["call_ms"].median == pytest.approx(1.0)
    assert found["call_p99_ms"].median == pytest.approx(np.percentile(of().calls_ms, 99))
    assert found["throughput_per_s"].median == pytest.approx(2_000.0)
    assert found["cold_load_ms"] is None
    few = report(Known(of(calls_ms=[1.0] * 30), of(calls_ms=[1.0] * 30)), Path("m")).estimates
    assert few["call_p99_ms"] is None
    assert few["call_p90_ms"].median == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("first_load_ms=20", "pass"),
        ("first_load_ms=11", "inconclusive"),
        ("first_load_ms=5", "failed-gate"),
        ("throughput_per_s=100", "pass"),
        ("throughput_per_s=1k", "failed-gate"),
        ("cold_load_ms=1000", "inconclusive"),
    ],
)
def test_each_is_a_gate(limit, said):
    """Judged by the whole interval, each in its direction."""
    lives = tuple(of(first_load_ms=ms, per_s=ms * 50) for ms in (10.0, 11.0, 12.0))
    estimates = report(Known(*lives), Path("m")).estimates
    ((name, value),) = limits_from([limit]).items()
    gate = verdict._lives_within(name, estimates[name], value)
    assert (gate.name, gate.verdict) == (name, said)


@pytest.mark.slow
def test_a_limit_measures_it(model, monkeypatch):
    monkeypatch.setattr(verdict, "LifeRule", lambda: RULE)
    limits = limits_from(["first_load_ms=1us", "load_peak_bytes=2GB"])
    result = check(model, LocalDevice(), limits=limits)
    by_name = {gate.name: gate.verdict for gate in result.gates}
    assert (by_name["first_load_ms"], by_name["load_peak_bytes"]) == ("failed-gate", "pass")
    assert isinstance(result.life, LifeReport)
    assert check(model, LocalDevice()).life is None


@pytest.mark.slow
def test_a_pace_that_cannot_be_kept(model):
    with pytest.raises(DeviceError, match="none can start every 0.0001 ms"):
        report(LocalDevice(), model, LifeRule(lives=1, every_ms=1e-4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--every", "0"], "--every must be a positive number"),
        (["--limit", "call_p9_ms=3"], "did you mean 'call_p9"),
        (["--min-accuracy", "2"], "is a fraction, 0 to 1"),
        (["--on", "cpu", "--batch", "2"], "leave out --batch"),
    ],
)
def test_what_the_command_line_refuses(options, said, model):
    found = CliRunner().invoke(app, ["check", str(model), *options])
    assert said in " ".join(str(found.exception).split())


def test_a_batch(model, tmp_path):
    path = batched(model, 3, tmp_path)
    (one,) = ModelFile(path).inputs
    assert list(one.shape) == [3, 3, 32, 32]
    single = probes(ModelFile(model).inputs, 3)
    together = answers_of(path, {one.name: np.concatenate([x[one.name] for x in single])})[0]
    alone = np.concatenate([answers_of(model, x)[0] for x in single])
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.slow
def test_a_batch_is_what_is_timed(model):
    single = check(model, LocalDevice())
    eight = check(model, LocalDevice(), given=Given(batch=8))
    assert eight.latency.median > 2 * single.latency.median


def fixed_reshape(path: Path) -> Path:
    """A model whose graph holds its batch of 1 a second time."""
    floats = TensorProto.FLOAT
    shape = numpy_helper.from_array(np.array([1, 8], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", floats, [1, 2, 4])],
        [helper.make_tensor_value_info("y", floats, [1, 8])],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_batches_that_cannot_be(model, tmp_path):
    path = fixed_reshape(tmp_path / "m.onnx")
    with pytest.raises(InvalidInputError, match="made for one input at a time"):
        batched(path, 2, tmp_path)
    # rows are added up: it runs, and answers otherwise
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["s"], keepdims=1),
         helper.make_node("Sub", ["x", "s"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", floats, [1, 4])],
        [helper.make_tensor_value_info("y", floats, [1, 4])],
    )  # fmt: skip
    mixed = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(mixed, tmp_path / "mixed.onnx")
    with pytest.raises(InvalidInputError, match="made for one input at a time"):
        batched(tmp_path / "mixed.onnx", 2, tmp_path)


def test_a_device_that_answers_nonsense():
    with pytest.raises(DeviceError, match="how a call lives"):
        Life.of({"first_load_ms": 1.0})
    with pytest.raises(DeviceError, match="how a call lives"):
        Life.of({**vars(of()), "calls_ms": [-1.0]})
    assert Life.of(vars(of())) == of()
