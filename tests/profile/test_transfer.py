"""A profile from other devices' profiles and a few networks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploynas.device import Identity, LocalDevice, Samples, StopRule
from deploynas.device.base import Notes
from deploynas.errors import IncompleteProfileError, InvalidInputError
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.timing import Level, Round
from deploynas.profile import DeviceProfile, LatencyModel, from_others, profile_space, profiler
from deploynas.profile.device_profile import (
    LayerRecord,
    LevelRecord,
    SampleRecord,
    layer_key,
    space_key,
)
from deploynas.profile.from_others import transfer_space
from deploynas.profile.prior import Prior
from deploynas.profile.profiler import calibration_archs, with_networks, write_timed
from deploynas.profile.validate import profiled_spaces, validate
from deploynas.search import Budget
from deploynas.spaces import SearchSpace, space
from deploynas.spaces.layers import Node, chain
from deploynas.workflows.target import Target, Tell

pytestmark = pytest.mark.slow

SPACE = space("mobile-small", 10, 1, [20, 28])


class Board:
    """A device elsewhere, on which a network's time is a sum over its convolutions.

    Args:
        per_layer_ms, per_byte_ms: Of a convolution and of its weights.
    """

    def __init__(self, name: str, per_layer_ms: float, per_byte_ms: float) -> None:
        facts = {"processor": name, "recorded": {}}
        self.identity: Identity = LocalDevice().identity.model_copy(update=facts)
        self.notes = Notes()
        self.costs = per_layer_ms, per_byte_ms
        self.names: list[str] = []

    def ms(self, path: Path) -> float:
        """Of a file."""
        model = onnx.load(path)
        convolutions = sum(node.op_type in ("Conv", "Gemm") for node in model.graph.node)
        size = sum(np.prod(one.dims) for one in model.graph.initializer)
        return 0.01 + self.costs[0] * convolutions + self.costs[1] * float(size)

    def rounds(
        self, models: Mapping[str, Path], rule: StopRule, samples: dict[str, Samples], seed: int
    ) -> Generator[Round, None, None]:
        """One session of three."""
        self.names = list(models)
        for number in range(3):
            touches = {name: (self.ms(path), Level(1.0, 1.0)) for name, path in models.items()}
            for name, (ms, level) in touches.items():
                samples[name].add(number == 0, ms, level)
            yield Round(number, touches, (number + 1) / 3, 0.0)

    def profile(self, chosen: SearchSpace = SPACE) -> DeviceProfile:
        """In full, without the detour of measuring it."""

        def samples(nodes: list[Node]) -> Samples:
            ms = self.ms(write_timed(folder / "timed.onnx", nodes, "fp32"))
            return Samples(1000, [[ms] * 3] * 2, [[1.0] * 3] * 2, [[1.0] * 3] * 2)

        with temporary_folder() as folder:
            layers = {
                layer_key(layer, "fp32"): LayerRecord(
                    macs=0, params=0, counted_by="nobody",
                    samples=SampleRecord.of(samples(chain([layer]))),
                )
                for layer in chosen.layer_table
            }  # fmt: skip
            level = LevelRecord(core_ms=1.0, memory_ms=1.0)
            profile = DeviceProfile(identity=self.identity, level=level, layers=layers)
            archs = calibration_archs(chosen, profile)
            measured = [samples(chosen.layers(arch)) for arch in archs]
            return with_networks(profile, chosen, archs, measured)


@pytest.fixture(scope="module")
def boards() -> dict[Path, DeviceProfile]:
    """Two boards that differ in what is dear."""
    kinds = {"layers": (0.02, 1e-7), "bytes": (0.002, 2e-6)}
    return {Path(f"{name}.json"): Board(name, *costs).profile() for name, costs in kinds.items()}


def test_samples_of_a_design_tell_a_device_between_its_sources() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 6, (400, 8)).astype(float)
    slow, quick = rng.uniform(1, 3, 8), rng.uniform(0.1, 1, 8)
    sources = np.stack([counts @ slow, counts @ quick], axis=1)
    columns = np.concatenate([np.ones((400, 1)), sources, counts], axis=1)
    prior = Prior(columns, 2, [8], [0.3])
    truth = 4 + counts @ (0.5 * slow + 2 * quick) + 0.3 * counts[:, 3]
    rows = prior.design(10, columns[:0])
    predicted = columns @ prior.fit(columns[rows], truth[rows]).weights
    drawn = rng.choice(400, 10, replace=False)
    by_chance = columns @ prior.fit(columns[drawn], truth[drawn]).weights
    error = np.abs(predicted / truth - 1)
    assert len(set(rows)) == 10
    assert error.mean() < 0.01
    assert error.mean() < 0.7 * np.abs(by_chance / truth - 1).mean()


def test_one_spoiled_measurement_does_not_mislead() -> None:
    rng = np.random.default_rng(1)
    work = rng.uniform(1, 2, (300, 3))
    columns = np.concatenate([np.ones((300, 1)), work.sum(axis=1, keepdims=True), work], axis=1)
    prior = Prior(columns, 1, [1, 1, 1], [0.3] * 3)
    truth = 3 * work[:, 0] + 2 * work[:, 1:].sum(axis=1)
    rows = prior.design(10, columns[:0])
    measured = truth[rows]
    measured[4] *= 1.8
    predicted = columns @ prior.fit(columns[rows], measured).weights
    assert np.abs(predicted / truth - 1).mean() < 0.02


def test_the_next_network_is_none_that_is_known_and_of_those_allowed() -> None:
    columns = np.array([[1.0, 1, 1], [1, 2, 1], [1, 2, 1], [1, 3, 2], [1, 4, 3]])
    prior = Prior(columns, 1, [1], [0.3])
    assert sorted(prior.design(9, columns[:1])) in ([1, 3, 4], [2, 3, 4])
    assert prior.design(1, columns[:0], np.arange(5) == 3) == [3]


@pytest.mark.long
def test_a_new_board_from_ten_networks(boards: dict[Path, DeviceProfile], tmp_path: Path) -> None:
    board = Board("between", 0.008, 1e-6)
    path = tmp_path / "new.json"
    transfer_space(SPACE, board, path, boards, 10)  # type: ignore[arg-type]
    profile = DeviceProfile.load(path)
    assert not profile.layers
    assert len(board.names) == len(profile.networks[space_key(SPACE, "fp32")]) == 10
    assert len(profile.sources(SPACE)) == 2
    model = LatencyModel(SPACE, profile)
    assert profile.restrict(SPACE).resolutions == SPACE.resolutions
    full = LatencyModel(SPACE, board.profile())
    archs = SPACE.sample(200, np.random.default_rng(9))
    error = np.abs(model.predict_ms(archs) / full.predict_ms(archs) - 1)
    assert error.mean() < 0.01
    assert np.mean(error <= model.bound.fit) > 0.9
    assert model.bound.fit == profile.validations[space_key(SPACE, "fp32")].margin
    # what reads profiles does not ask
    assert profiled_spaces(profile)[0].resolutions == SPACE.resolutions
    layers = sum(profile.layer_ms(node.layer) for node in SPACE.layers(archs[0]))
    assert layers == pytest.approx(model.predict_ms(archs[:1])[0], rel=0.3)
    told: list[str] = []
    Target(path).problem(SPACE, Budget(latency_ms=1.0), Tell(note=told.append))
    assert [note for note in told if "transferred: 10 networks" in note]
    judged = validate(model, profile, board, archs[:8])  # type: ignore[arg-type]
    assert judged.table.mape < 0.02
    assert abs(judged.drift) < 1e-9


def test_more_networks_are_added_to_those_that_are_there(
    boards: dict[Path, DeviceProfile], tmp_path: Path
) -> None:
    board, path, key = (
        Board("between", 0.008, 1e-6),
        tmp_path / "new.json",
        "fp32/mobile-small/10/1",
    )
    first = transfer_space(SPACE, board, path, boards, 6)  # type: ignore[arg-type]
    more = transfer_space(SPACE, board, path, boards, 14)  # type: ignore[arg-type]
    assert len(board.names) == 8
    assert more.networks[key][:6] == first.networks[key]
    assert len(more.networks[key]) == 14


def test_a_plain_profile_takes_its_place(
    tmp_path: Path, small_table: Callable[[list[int]], Path]
) -> None:
    chosen = space(str(small_table([1, 2, 3, 4, 5, 6])), 10, 1)
    board, path = Board("between", 0.008, 1e-6), tmp_path / "new.json"
    sources = {Path("layers.json"): Board("layers", 0.02, 1e-7).profile(chosen)}
    transfer_space(chosen, board, path, sources, 5)  # type: ignore[arg-type]
    full, num = profile_space(chosen, board, path)  # type: ignore[arg-type]
    assert num == len(chosen.layer_table) == len(full.layers)
    assert not full.transfers
    with pytest.raises(InvalidInputError, match="as it was measured there"):
        transfer_space(chosen, board, path, sources, 5)  # type: ignore[arg-type]


def test_bad_sources_and_numbers(boards: dict[Path, DeviceProfile], tmp_path: Path) -> None:
    board, path = Board("between", 0.008, 1e-6), tmp_path / "new.json"

    def transfer(
        num: int = 10,
        chosen: SearchSpace = SPACE,
        sources: dict[Path, DeviceProfile] = boards,
        device: Board = board,
    ) -> None:
        transfer_space(chosen, device, path, sources, num)  # type: ignore[arg-type]

    with pytest.raises(InvalidInputError, match="5 networks"):
        transfer(4)
    with pytest.raises(InvalidInputError, match="this very device.*without --from"):
        transfer(device=Board("layers", 0.02, 1e-7))
    other = space("proxyless-small", 10, 1, [20])
    with pytest.raises(IncompleteProfileError, match="layers.json is no source for proxyless"):
        transfer(chosen=other)
    with pytest.raises(IncompleteProfileError, match="layers.json.*24"):
        transfer(chosen=space("mobile-small", 10, 1, [24]))
    bare = {
        name: one.model_copy(update={"networks": {}, "validations": {}})
        for name, one in boards.items()
    }
    with pytest.raises(IncompleteProfileError, match="no calibration of mobile-small"):
        transfer(sources=bare)
    assert not path.exists()


def test_a_space_of_one_network(tmp_path: Path, small_table: Callable[[list[int]], Path]) -> None:
    one = space(str(small_table([1])), 10, 1)
    sources = {Path("layers.json"): Board("layers", 0.02, 1e-7).profile(one)}
    with pytest.raises(InvalidInputError, match="no 10 networks that differ.*leave out --from"):
        transfer_space(one, Board("b", 0.01, 1e-7), tmp_path / "n.json", sources)  # type: ignore[arg-type]


@pytest.mark.long
def test_two_threads_from_one_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = space("mobile-small", 10, 1, [20])
    short = StopRule(min_sessions=2, max_sessions=2, rounds=4)
    for module, name in (
        (profiler, "NETWORK_RULE"),
        (profiler, "LAYER_RULE"),
        (from_others, "RULE"),
    ):
        monkeypatch.setattr(module, name, replace(short))
    source = tmp_path / "cpu.json"
    sources = {source: profile_space(chosen, LocalDevice(), source)[0]}
    profile = transfer_space(chosen, LocalDevice(threads=2), tmp_path / "t2.json", sources, 6)
    model = LatencyModel(chosen, profile)
    ends = model.predict_ms(np.concatenate([chosen.smallest(), chosen.largest()]))
    assert 0 < ends[0] < ends[1]
    assert profile.identity.threads == 2
