"""Limits of a file: every cost that a file tells, and what a search was held to elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from deploynas import spaces
from deploynas.check import verdict
from deploynas.check.limits import OnDevice, limits_from
from deploynas.check.model_file import costs_of
from deploynas.check.verdict import check
from deploynas.cli import check as cli_check
from deploynas.cli.main import app
from deploynas.costs import COSTS
from deploynas.device import LocalDevice
from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.export import Manifest
from deploynas.graph import RandomWeights, write_model
from deploynas.runtimes import RUNTIMES

pytestmark = pytest.mark.slow

SHIPPED = Path(__file__).parents[2] / "exports" / "fashion-mnist"


@pytest.fixture(autouse=True)
def short_sessions(monkeypatch):
    monkeypatch.setattr(
        verdict, "RULE", replace(verdict.RULE, min_sessions=1, max_sessions=1, rounds=1)
    )


@pytest.mark.parametrize("name", ["mobile-small", "ofa-proxyless-w1.3", "darts-small"])
def test_a_file_has_what_its_architecture_has(name, tmp_path):
    """Its weights to the byte, also where activations have limits of their own."""
    space = spaces.space(name)
    arch = space.sample(1, np.random.default_rng(0))
    path = write_model(tmp_path / "model.onnx", space.layers(arch[0]), RandomWeights())
    file = OnDevice(LocalDevice(), path)
    own = space.sum_over_layers(arch, space.layer_values("weight_bytes"))
    assert COSTS.load("macs").measure(file) == space.macs(arch)[0]
    assert COSTS.load("weight_bytes").measure(file) == own[0]
    assert COSTS.load("params").measure(file) == own[0] / 4 <= space.params(arch)[0]


def test_arguments_of_a_tflite_are_no_weights(tmp_path):
    """Shapes, axes and pads are constants there too."""
    pytest.importorskip("ai_edge_litert")
    space = spaces.space("mobile-plain", num_classes=10, in_channels=3, resolutions=[32])
    path = write_model(tmp_path / "m.onnx", space.layers(space.smallest()[0]), RandomWeights())
    own = RUNTIMES.load("litert").convert(path, tmp_path)
    holders = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    counts = [[one.num_weights, one.kind in holders] for one in costs_of(own)]
    assert any(count for count, holds in counts if not holds)
    file = OnDevice(LocalDevice(), own)
    assert COSTS.load("params").measure(file) == sum(count for count, holds in counts if holds)
    assert COSTS.load("macs").measure(file) == COSTS.load("macs").measure(
        OnDevice(LocalDevice(), path)
    )


def test_what_is_not_counted_is_not_within_a_limit(tmp_path):
    floats = TensorProto.FLOAT
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik")],
        "g",
        [helper.make_tensor_value_info("x", floats, [1, 4])],
        [helper.make_tensor_value_info("y", floats, [1, 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    result = check(tmp_path / "m.onnx", LocalDevice(), limits={"macs": 1e6, "params": 20})
    assert result.taken == {"macs": None, "params": 16}
    by_name = {gate.name: gate.verdict for gate in result.gates}
    assert (by_name["MACs"], by_name["params"]) == ("inconclusive", "pass")


def test_limits_by_any_cost():
    found = limits_from(["macs=2M", "params=180k", "weight_bytes=1MB", "file_bytes=1MB"])
    assert found == {"macs": 2e6, "params": 180e3, "weight_bytes": 1e6, "file_bytes": 1e6}
    with pytest.raises(UnknownNameError, match="did you mean 'params'"):
        limits_from(["parms=1"])
    with pytest.raises(InvalidInputError, match="given twice"):
        limits_from(["macs=1", "macs=2"])


def test_each_is_a_gate():
    limits = {"macs": 1.6e6, "params": 1e5, "weight_bytes": 1e6}
    result = check(SHIPPED, LocalDevice(), limits=limits)
    by_name = {gate.name: gate for gate in result.gates}
    assert by_name["MACs"].verdict == "pass"
    assert by_name["params"].verdict == "failed-gate"
    assert by_name["params"].reason == "175.9 k params where 100 k params is allowed"
    assert by_name["weight_bytes"].verdict == "pass"
    assert result.taken == {"macs": 1_523_584, "params": 175_858, "weight_bytes": 703_432}
    assert result.verdict == "failed-gate"


def test_what_was_limited_elsewhere_is_told(tmp_path, monkeypatch):
    manifest = Manifest.read(SHIPPED / "manifest.json")
    limits = {"web.latency_ms": 25.0, "macs": 2e6}
    own = manifest.model_copy(update={"limits": limits})
    own.write(tmp_path / "manifest.json")
    for name in manifest.files:
        (tmp_path / name).write_bytes((SHIPPED / name).read_bytes())
    result = check(tmp_path, LocalDevice())
    assert result.elsewhere == {"web.latency_ms": 25.0}
    assert check(SHIPPED, LocalDevice()).elsewhere == {}
    monkeypatch.setattr(cli_check, "_own_examples", lambda manifest: None)
    said = CliRunner().invoke(app, ["check", str(tmp_path)]).output
    command = f"deploynas check {tmp_path} --latency-ms 25 --device web"
    assert f"searched under web.latency_ms 25 too; judge it there: {command}\n" in said
