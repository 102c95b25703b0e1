"""The operator layer: right on a device whose times are a law, honest on a real one."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from deploynas.cli.main import app
from deploynas.device import Identity, LocalDevice, StopRule
from deploynas.errors import DeviceMismatchError, IncompleteProfileError
from deploynas.graph.fragments import Fragment, build, grid
from deploynas.graph.operators import Operator, Priced, operators, operators_of_model
from deploynas.profile import DeviceProfile
from deploynas.profile import operators as layer
from deploynas.profile.device_profile import FragmentRecord, LevelRecord, SampleRecord
from deploynas.profile.operators import OperatorModel, held_out, profile_operators

FEW = [one for one in grid() if int(one.name.rpartition("-")[2]) < (12 if one.is_network else 2)]


def law_ms(op: Operator) -> float:
    """A device: 2 us a call, 20 G multiply-adds a second, depthwise a third of that, 8 GB/s.

    Its blocks have 16 channels, and what runs inside a convolution costs nothing.
    """
    if op.variant.endswith(" inside"):
        return 0.0
    rate, pads = 20e6 / (3 if op.kind == "depthwise" else 1), 1.0
    if op.blocked:
        sides = [op.groups] if op.kind == "depthwise" else [op.in_channels, op.out_channels]
        pads = math.prod(-(-side // 16) * 16 / side for side in sides)
    return 2e-3 + op.macs * pads / rate + (op.in_bytes + op.out_bytes + op.weight_bytes) / 8e6


def identity() -> Identity:
    return Identity(
        device="cpu", processor="a law", runtime="onnxruntime 1.23", provider="none", threads=1,
        session_options={}, recorded={},
    )  # fmt: skip


def record(fragment: Fragment) -> FragmentRecord:
    rows = operators_of_model(build(fragment))
    count = Counter(op for row in rows for op in row.operators)
    ms = sum(num * law_ms(op) for op, num in count.items())
    return FragmentRecord(
        is_network=fragment.is_network,
        operators=tuple(count.items()),
        samples=SampleRecord(
            model_bytes=1, ms=((ms,),) * 3, core_ms=((1.0,),) * 3, memory_ms=((1.0,),) * 3
        ),
    )


@pytest.fixture(scope="module")
def lawful() -> DeviceProfile:
    profile = DeviceProfile(
        identity=identity(),
        level=LevelRecord(core_ms=1, memory_ms=1),
        fragments={one.name: record(one) for one in FEW},
    )
    return profile.model_copy(update={"operator_validation": held_out(profile)})


@pytest.mark.slow
def test_a_law_is_recovered(lawful: DeviceProfile, tmp_path: Path) -> None:
    assert lawful.operator_validation is not None
    assert lawful.operator_validation.mape < 0.02
    again = DeviceProfile.read(lawful.write(tmp_path / "p.json"))
    assert again == lawful
    model = OperatorModel(again)
    errors = []
    for i in range(12, 16):  # networks that it never saw
        rows = operators_of_model(build(Fragment(f"network-{i}", i, True)))
        price = model.predict(rows)
        truth = [sum(law_ms(op) for op in row.operators) for row in rows]
        errors.append(price.ms / sum(truth) - 1)
        assert price.ms == pytest.approx(sum(node.ms for node in price.nodes))
        assert model.predict_ms([rows, rows[:3]])[0] == pytest.approx(price.ms)
        assert [node.name for node in price.nodes] == [row.name for row in rows]
        runs = [bool(row.operators) for row in rows]
        assert [node.ms > 0 for node in price.nodes] == runs
        assert price.strange_share < 0.05
    assert np.abs(errors).mean() < 0.02


@pytest.mark.slow
def test_what_nothing_resembles_is_named_priced_and_widens_the_bound(
    lawful: DeviceProfile,
) -> None:
    model = OperatorModel(lawful)
    rows = operators_of_model(build(Fragment("network-30", 30, True)))
    before = model.predict(rows)
    odd = Operator("unknown", "Det", in_bytes=400_000, out_bytes=400_000)
    after = model.predict([*rows, Priced("odd one", "Det", (odd,))])
    assert [(one.name, one.kind) for one in after.strange] == [("odd one", "Det")]
    assert after.strange[0].ms > 0.02  # 800 kB at no more than 40 GB/s
    assert after.margin > before.margin + 0.9 * after.strange[0].ms / after.ms
    assert after.low_ms < before.ms < after.high_ms


def test_a_profile_without_operators_says_what_to_type() -> None:
    with pytest.raises(IncompleteProfileError, match=r"deploynas profile --operators"):
        OperatorModel(DeviceProfile(identity=identity()))


def foreign(path: Path) -> Path:
    """A file of somebody else's: a stem, a pool, and an operator that no fragment has."""
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(
        rng.standard_normal((16, 3, 3, 3)).astype(np.float32), "w"
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="stem", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("CumSum", ["b", "axis"], ["c"], name="sums"),
        helper.make_node("GlobalAveragePool", ["c"], ["y"], name="pool"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 1, 1])],
        [weight, onnx.numpy_helper.from_array(np.array(1, np.int64), "axis")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.slow
def test_a_real_device_prices_a_file_that_no_space_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [Fragment(f"{name}-0", 0, False) for name in ("stem", "pooled", "excited", "loose")]
    few += [Fragment(f"network-{i}", i, True) for i in (1, 3, 5)]
    monkeypatch.setattr(layer, "grid", lambda: few)
    monkeypatch.setattr(layer, "RULE", StopRule(min_sessions=2, max_sessions=2, rounds=4))
    monkeypatch.chdir(tmp_path)
    runner, model = CliRunner(), foreign(tmp_path / "m.onnx")
    made = runner.invoke(app, ["profile", "--operators", "--output", "p.json", "--json"])
    assert made.exit_code == 0, made.output
    document = json.loads(made.stdout)
    assert (document["num_fragments"], document["num_measured"]) == (7, 7)
    assert document["validation"]["num_networks"] == 3
    profile = DeviceProfile.load(tmp_path / "p.json")
    assert {one.name for one in few} == set(profile.fragments)
    again, measured = profile_operators(LocalDevice(), tmp_path / "p.json")
    assert (measured, again.fragments) == (0, profile.fragments)

    found = runner.invoke(app, ["inspect", str(model), "--profile", "p.json", "--json"])
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["low_ms"] < document["predicted_latency_ms"] < document["high_ms"]
    assert [one["name"] for one in document["strange"]] == ["sums"]
    assert document["prediction_error"] > document["strange_share"] > 0
    whole = sum(row["latency_ms"] for row in document["layers"]) + document["call_ms"]
    assert whole == pytest.approx(document["predicted_latency_ms"])
    shown = runner.invoke(app, ["inspect", str(model), "--profile", "p.json"])
    assert "nothing in the profile resembles sums (CumSum)" in " ".join(shown.output.split())

    other = profile.model_copy(update={"identity": identity()})
    other.write(tmp_path / "other.json")
    with pytest.raises(DeviceMismatchError, match="another device"):
        profile_operators(LocalDevice(), tmp_path / "other.json")


@pytest.mark.slow
def test_an_export_prices_by_its_space_and_a_foreign_file_needs_operators(tmp_path: Path) -> None:
    empty = DeviceProfile(identity=identity()).write(tmp_path / "p.json")
    model = foreign(tmp_path / "m.onnx")
    result = CliRunner().invoke(app, ["inspect", str(model), "--profile", str(empty), "--json"])
    assert result.exit_code == 1
    assert "profile --operators" in str(result.exception)
    wrong = CliRunner().invoke(app, ["profile", "--operators", "--bundle", "b.pyz", "--json"])
    assert wrong.exit_code == 1
    assert "--operators" in str(wrong.exception)


def test_pricing_needs_no_file(tmp_path: Path) -> None:
    """A variant is priced from its operators; its file tells the same."""
    model = build(Fragment("basic-1", 1, False))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert operators_of_model(model) == operators(path)
