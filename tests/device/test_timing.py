"""The timing engine: real workers on tiny models, and arithmetic on synthetic samples."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from deploynas.check.regression import slower_layers
from deploynas.device import (
    Identity,
    Level,
    LocalDevice,
    Samples,
    StopRule,
    measure,
    open_device,
)
from deploynas.device.reference import write_references
from deploynas.errors import DeviceError, InvalidInputError, UnknownNameError, require_positive
from deploynas.graph.emit import RandomWeights, emit
from deploynas.onboard.conversation import Worker
from deploynas.onboard.processor import kinds_of_cores
from deploynas.onboard.timing import MEMORY_BYTES, estimate, interval, t_quantile
from deploynas.spaces import Layer
from deploynas.spaces.layers import chain

pytestmark = pytest.mark.slow

SMALL = Layer("conv", 3, 8, 16, 16, kernel_size=3, activation="relu")
LARGE = Layer("conv", 32, 32, 48, 48, kernel_size=3, activation="relu")
QUICK = StopRule(precision=1e-9, min_sessions=2, max_sessions=2, rounds=3, touch_ms=0.1)


def write_model(path, layer):
    path.write_bytes(emit(chain([layer]), RandomWeights()).SerializeToString())
    return path


@pytest.fixture
def models(tmp_path):
    return {
        "small": write_model(tmp_path / "small.onnx", SMALL),
        "large": write_model(tmp_path / "large.onnx", LARGE),
    }


@pytest.mark.slow
def test_measure_on_this_machine(models):
    progress, rounds = [], []
    samples = measure(
        LocalDevice(),
        models,
        QUICK,
        on_progress=lambda p: progress.append(p),
        on_round=lambda number, touches: rounds.append((number, set(touches))),
    )
    assert list(samples) == ["small", "large"]
    for name, one in samples.items():
        assert [len(s) for s in one.ms] == [3, 3]
        for column in (one.core_ms, one.memory_ms):
            assert [len(s) for s in column] == [3, 3]
            assert all(math.isfinite(v) and v > 0 for s in column for v in s)
        assert one.model_bytes == models[name].stat().st_size
        for result in (one.estimate(), one.estimate(at=one.level)):
            assert result.low <= result.median <= result.high
            assert result.num_samples == one.num_samples == 6
    assert samples["large"].estimate().median > samples["small"].estimate().median
    assert rounds == [(r, {"small", "large"}) for _ in range(2) for r in range(3)]
    assert [p.done for p in progress] == sorted(p.done for p in progress)
    assert (progress[-1].done, progress[-1].num_models) == (1.0, 2)


def test_precise_models_leave_after_min_sessions(models):
    rule = StopRule(precision=math.inf, min_sessions=1, max_sessions=4, rounds=2, touch_ms=0.1)
    samples = measure(LocalDevice(), models, rule)
    assert {name: len(s.ms) for name, s in samples.items()} == {"small": 1, "large": 1}


def test_sessions_that_are_there_count(models):
    kept = synthetic([[1.0, 1.0], [1.0, 1.0]])
    rule = StopRule(precision=math.inf, min_sessions=2, max_sessions=2, rounds=2, touch_ms=0.1)
    samples = {"small": kept}
    assert measure(LocalDevice(), {"small": models["small"]}, rule, samples=samples) is samples
    assert samples["small"].ms == [[1.0, 1.0], [1.0, 1.0]]
    samples = {"small": synthetic([[1.0, 1.0]])}
    measure(LocalDevice(), {"small": models["small"]}, rule, samples=samples)
    assert [len(s) for s in samples["small"].ms] == [2, 2]
    assert samples["small"].ms[0] == [1.0, 1.0]


def test_no_time_still_gives_one_session(models):
    rule = StopRule(min_sessions=3, rounds=2, max_seconds=0.0, touch_ms=0.1)
    samples = measure(LocalDevice(), {"small": models["small"]}, rule)
    assert [len(s) for s in samples["small"].ms] == [2]


def test_nothing_to_measure():
    assert measure(LocalDevice(), {}, QUICK) == {}


def test_broken_file_is_named(tmp_path, models):
    broken = tmp_path / "broken-net.onnx"
    broken.write_bytes(models["small"].read_bytes()[:100])
    kept = {}
    with pytest.raises(DeviceError, match="broken-net") as caught:
        measure(LocalDevice(), models | {"x": broken}, QUICK, samples=kept)
    assert "\n" not in str(caught.value)
    assert all(s.num_samples == 0 for s in kept.values())


def test_worker_times_what_it_is_asked(models):
    with LocalDevice().opened(list(models.values())) as worker:
        times = worker.time([(0, 2), (1, 4), (0, 1)])
        assert [len(t) for t in times] == [2, 4, 1]
        with pytest.raises(DeviceError, match="onnxruntime .* failed: list index"):
            worker.time([(7, 1)])
        assert len(worker.time([(1, 1)])) == 1  # a refused question does not end it


def test_worker_that_ends_is_reported(models):
    words = "import sys; sys.exit('out of battery')"
    worker = Worker([sys.executable, "-c", words])
    try:
        with pytest.raises(DeviceError, match=r"with small \(exit code 1\): out of battery"):
            worker.load(models["small"])
    finally:
        worker.close()


def test_impossible_times_are_refused():
    words = "input(); print('{\"ms\": [[1.0, 0.0]]}', flush=True)"
    worker = Worker([sys.executable, "-c", words])
    try:
        with pytest.raises(DeviceError, match="impossible times"):
            worker.time([(0, 2)])
    finally:
        worker.close()


def test_references_are_always_the_same(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = write_references(tmp_path / "a"), write_references(tmp_path / "b")
    assert len(first) == 2
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert first[-1].stat().st_size == pytest.approx(MEMORY_BYTES, rel=0.03)


@pytest.mark.parametrize("threads", [0, -1, 1_000_000])
def test_threads_out_of_range(threads):
    with pytest.raises(InvalidInputError, match="this machine offers 1 to"):
        LocalDevice(threads=threads)


def test_unknown_provider():
    with pytest.raises(UnknownNameError, match="did you mean 'CPUExecutionProvider'"):
        LocalDevice(provider="CPUExecutionProvide")


def test_cores_rotate_over_sessions():
    device = LocalDevice()
    pinned = {device.command(session)[-1] for session in range(2 * (os.cpu_count() or 1))}
    assert pinned <= {str(core) for core in range(os.cpu_count() or 1)}
    assert device.command(0) == device.command(0)
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1:
        assert device.command(0) != device.command(1) or len(pinned) == 1


def test_identity_of_this_machine():
    identity = LocalDevice().identity
    assert (identity.device, identity.threads) == ("cpu", 1)
    assert identity.runtime.startswith("onnxruntime ")
    assert identity == Identity.model_validate(identity.model_dump())
    assert identity.processor in identity.title
    assert "1 thread" in identity.title


def test_identity_differences():
    one = LocalDevice().identity
    assert one.differences(one) == []
    recorded = one.model_copy(update={"recorded": {"kernel": "other"}})
    assert one.differences(recorded) == []
    other = one.model_copy(update={"threads": 4, "processor": "Other"})
    assert one.differences(other) == [f"processor: {one.processor} / Other", "threads: 1 / 4"]


def synthetic(ms, core=None, memory=None, model_bytes=1000):
    def ones():
        return [[1.0] * len(s) for s in ms]

    return Samples(model_bytes, ms, core or ones(), memory or ones())


def noisy(seed, sessions=4, n=12, centre=5.0):
    rng = np.random.default_rng(seed)
    return [list(centre * np.exp(0.02 * rng.standard_normal(n))) for _ in range(sessions)]


def test_estimate_is_deterministic():
    samples = synthetic(noisy(0))
    assert samples.estimate() == samples.estimate()
    assert samples.estimate() == synthetic(noisy(0)).estimate()
    assert samples.estimate() != synthetic(noisy(1)).estimate()


@pytest.mark.parametrize("sessions", [1, 2, 3, 8])
def test_interval_contains_the_median(sessions):
    for seed in range(20):
        result = synthetic(noisy(seed, sessions)).estimate()
        assert result.low <= result.median <= result.high
        assert result.num_samples == 12 * sessions


@pytest.mark.parametrize("sessions", [2, 3, 4, 8, 12])
def test_95_percent_intervals_hold_the_truth_of_95_percent(sessions):
    """Sessions differ by 3 % as draws do: 4,000 intervals tell their share by 0.35 %."""
    logs = 0.03 * np.random.default_rng(sessions).standard_normal((4_000, sessions))
    ends = np.array([interval(row, 0.95) for row in logs])
    assert np.mean((ends[:, 0] <= 0) & (ends[:, 2] >= 0)) == pytest.approx(0.95, abs=0.012)


def test_student_by_tables_and_by_scipy():
    assert t_quantile(0.95, 1) == pytest.approx(12.7062047362, rel=1e-10)
    assert t_quantile(0.95, 2) == pytest.approx(4.3026527297, rel=1e-10)
    assert t_quantile(0.95, 7) == pytest.approx(2.3646242516, rel=1e-10)
    scipy_t = pytest.importorskip("scipy.stats").t
    for share in (0.5, 0.95, 0.975, 1 - 0.05 / 2**10):
        for df in (*range(1, 41), 93, 200):
            assert t_quantile(share, df) == pytest.approx(scipy_t.ppf((1 + share) / 2, df))


def test_estimate_by_hand():
    result = synthetic([[2.0, 2.0, 90.0], [4.0, 4.0, 4.0]]).estimate()
    assert result.median == pytest.approx(math.sqrt(8))  # of medians: one outlier counts nothing
    # the logarithms' standard deviation is log(2) / sqrt(2), and a mean's of two half of log(2)
    assert math.log(result.high / result.median) == pytest.approx(12.7062047 * math.log(2) / 2)
    assert result.low * result.high == pytest.approx(8)
    wider = synthetic([[2.0, 2.0, 90.0], [4.0, 4.0, 4.0]]).estimate(confidence=0.975)
    assert math.log(wider.high / wider.median) == pytest.approx(25.4516996 * math.log(2) / 2)
    constant = synthetic([[2.0] * 5, [2.0] * 5]).estimate()
    assert (constant.low, constant.median, constant.high) == pytest.approx((2.0, 2.0, 2.0))
    assert (constant.half_width, constant.unstable) == (0.0, False)


def test_sessions_that_disagree_are_unstable():
    assert synthetic([[1.0] * 9, [2.0] * 9]).estimate().unstable


def test_more_sessions_narrow_the_interval():
    few = np.mean([synthetic(noisy(s, 2)).estimate().half_width for s in range(20)])
    many = np.mean([synthetic(noisy(s, 8)).estimate().half_width for s in range(20)])
    assert many < few


def test_core_drift_between_sessions_is_removed_exactly():
    clocks = (1.0, 1.25, 0.8, 2.0)
    ms = [[6.0 * c] * 7 for c in clocks]
    core = [[0.5 * c] * 7 for c in clocks]
    samples = synthetic(ms, core)
    assert samples.estimate().unstable
    result = samples.estimate(at=Level(0.5, 1.0))
    assert result.median == pytest.approx(6.0, rel=1e-12)
    assert result.half_width == pytest.approx(0.0, abs=1e-12)
    slower = samples.estimate(at=Level(1.0, 1.0))
    assert slower.median == pytest.approx(12.0, rel=1e-12)


def test_core_drift_inside_a_session_is_removed():
    drift = np.linspace(1.0, 1.5, 11)
    result = synthetic([list(3.0 * drift)], [list(0.2 * drift)]).estimate(at=Level(0.2, 1.0))
    assert result.median == pytest.approx(3.0, rel=1e-12)


def test_one_wild_reference_reading_changes_nothing():
    core = [1.0] * 9
    core[4] = 30.0
    result = synthetic([[3.0] * 9], [core]).estimate(at=Level(1.0, 1.0))
    assert (result.low, result.median, result.high) == pytest.approx((3.0, 3.0, 3.0))


def test_memory_drift_leaves_small_models_alone():
    memory = [[2.0] * 5, [4.0] * 5]
    result = synthetic([[3.0] * 5] * 2, memory=memory).estimate(at=Level(1.0, 2.0))
    assert (result.median, result.half_width) == pytest.approx((3.0, 0.0))


def test_memory_drift_of_a_streaming_model_is_removed_exactly():
    speeds = (1.0, 1.5, 0.75)
    samples = synthetic(
        [[4.0 * s] * 5 for s in speeds],
        memory=[[2.0 * s] * 5 for s in speeds],
        model_bytes=4 * MEMORY_BYTES,  # twice the rate of the memory reference
    )
    result = samples.estimate(at=Level(1.0, 2.0))
    assert (result.median, result.half_width) == pytest.approx((4.0, 0.0))


def test_level_and_samples():
    samples = Samples(10)
    samples.add(True, 1.0, Level(0.1, 1.0))
    samples.add(False, 2.0, Level(0.3, 3.0))
    samples.add(True, 3.0, Level(0.2, 2.0))
    assert samples.ms == [[1.0, 2.0], [3.0]]
    assert samples.num_samples == 3
    assert samples.level == Level(0.2, 2.0)


def test_estimate_of_unequal_sessions():
    result = estimate([np.array([1.0]), np.array([1.0, 2.0, 3.0])])
    assert result.median == pytest.approx(math.sqrt(2))
    assert result.num_samples == 4


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_require_positive(value):
    assert require_positive(2.0, "the budget") == 2.0
    with pytest.raises(InvalidInputError, match="the budget must be a positive number"):
        require_positive(value, "the budget")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("opset", "ir_version", "operator", "said"),
    [
        (99, 8, "Relu", r"onnxruntime 1\.\d+ failed with new \(opset 99, file format 8\)"),
        (17, 99, "Relu", r"\(opset 17, file format 99\): Unsupported model IR version: 99"),
        (17, 8, "Invented", r"No Op registered for Invented with domain_version of 17"),
    ],
)
def test_a_runtime_too_old_for_a_model_says_both_versions(
    opset, ir_version, operator, said, tmp_path
):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in "xy"]
    node = helper.make_node(operator, ["x"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    path = tmp_path / "new.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DeviceError, match=said) as caught:
        measure(LocalDevice(), {"new": path}, QUICK)
    assert "onnxruntime_src" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_disturbed_session_changes_little():
    quiet = [np.array([1.0, 1.01, 0.99]) * scale for scale in (0.995, 1.0, 1.005, 1.01, 0.99)]
    disturbed = [*quiet, np.array([1.3, 1.4, 1.35])]
    # of the logarithms 0.00748 is the median deviation, 0.00249 the median: 0.0690 at most
    assert estimate(disturbed).median == pytest.approx(1.01155, abs=2e-5)
    assert estimate([*quiet, quiet[1] * 9]).median == estimate(disturbed).median
    assert estimate(disturbed).num_samples == 18
    two_kinds = [*quiet, *(1.3 * session for session in quiet)]
    assert estimate(two_kinds).median > 1.1  # what happens half of the time is no outlier


class Watched(LocalDevice):
    """Remembers the sessions that it was asked for."""

    def __init__(self):
        super().__init__()
        self.sessions = []

    def command(self, session):
        self.sessions.append(session)
        return super().command(session)


def descends(pid):
    """Whether a process was started by this one, or by one that was."""
    while pid > 1 and pid != os.getpid():
        stat = Path(f"/proc/{pid}/stat").read_text()
        pid = int(stat.rpartition(")")[2].split()[1])
    return pid == os.getpid()


def cores_of_workers():
    """The cores of each worker below this process."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            is_worker = len(arguments) > 1 and arguments[1].endswith(b"onboard/worker.py")
            if is_worker and descends(int(folder.name)):
                found[folder.name] = frozenset(os.sched_getaffinity(int(folder.name)))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no core can be chosen here")
@pytest.mark.parametrize("name", ["cpu", f"exec:{shlex.quote(sys.executable)}"])
def test_cores_rotate_over_measurements_of_the_same_samples(name, models):
    device, samples, used, before = open_device(name), {}, [], cores_of_workers()
    for number in range(1, 4):
        rule = replace(QUICK, min_sessions=number, max_sessions=number, rounds=2)

        def on_round(session, touches):
            new = {w: cores for w, cores in cores_of_workers().items() if w not in before}
            used.append(*new.values()) if session == 0 else None

        measure(device, models, rule, samples=samples, on_round=on_round)
    assert [len(one) for one in samples["small"].ms] == [2, 2, 2]
    cores, *_ = kinds_of_cores()
    assert used == [frozenset({cores[i % len(cores)]}) for i in range(3)]


@pytest.mark.slow
def test_sessions_go_on_from_those_that_are_there(models):
    device = Watched()
    samples = {"small": synthetic([[1.0, 1.1], [1.0, 1.1], [1.0, 1.1]]), "large": synthetic([])}
    rule = replace(QUICK, min_sessions=2, max_sessions=4, precision=math.inf)
    measure(device, models, rule, samples=samples)
    assert device.sessions == [3, 4]  # what the large one lacks; the small one has enough
    assert [len(samples[name].ms) for name in models] == [3, 2]


@pytest.mark.slow
def test_layers_are_compared_on_every_core(models):
    device = Watched()
    slower_layers(device, models["large"], models["small"])
    assert device.sessions == [0, 0, 1, 1, 2, 2]
