"""Weights and checkpoints, on real files."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from deploynas import spaces
from deploynas.errors import InvalidInputError, MissingFileError, OutputError
from deploynas.nn import Supernet, build
from deploynas.train.checkpoint import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)


def small(seed=0):
    torch.manual_seed(seed)
    space = spaces.space("mobile-small", resolutions=[20])
    return build(space, space.smallest()[0])


def tiny(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def optimizer_of(module):
    return torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)


def train(module, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()


def assert_equal(first, second):
    assert all(torch.isfinite(v).all() for v in first.state_dict().values())
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def refuse(path, module):
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(InvalidInputError) as caught:
        load_weights(path, module)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_weights_round_trip(tmp_path):
    path = tmp_path / "new" / "net.safetensors"
    first, second = small(0), small(1)
    assert not torch.equal(first.layers[0].conv.weight, second.layers[0].conv.weight)
    assert save_weights(path, first) == path
    load_weights(path, second)
    assert_equal(first, second)
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


def test_supernet_round_trip(tmp_path):
    space = spaces.space("mobile-small", resolutions=[20])
    first, second = Supernet(space), Supernet(space)
    load_weights(save_weights(tmp_path / "supernet.safetensors", first), second)
    assert_equal(first, second)


def test_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        load_weights(tmp_path / "nothing", small())


def test_wrong_tensors_are_named(tmp_path):
    path = save_weights(tmp_path / "w", nn.ModuleDict({n: nn.Linear(2, 2) for n in "abcd"}))
    other = nn.ModuleDict({n: nn.Linear(3, 2) if n == "b" else nn.Linear(2, 2) for n in "bcd"})
    message = refuse(path, other)
    assert message.endswith("does not fit the network: a.bias, a.weight, b.weight")


def test_only_the_first_three_are_named(tmp_path):
    path = save_weights(tmp_path / "w", nn.ModuleDict({n: nn.Linear(2, 2) for n in "abc"}))
    message = refuse(path, nn.ModuleDict({"c": nn.Linear(2, 2)}))
    assert message.endswith(": a.bias, a.weight, b.bias")


def test_missing_tensors_are_named(tmp_path):
    path = save_weights(tmp_path / "w", nn.ModuleDict({"a": nn.Linear(2, 2)}))
    message = refuse(path, nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}))
    assert message.endswith(": b.bias, b.weight")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated(tmp_path, share):
    path = save_weights(tmp_path / "w", small())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "truncated or not a safetensors file" in refuse(path, small())


def test_foreign_file(tmp_path):
    path = tmp_path / "w"
    path.write_text('{"schema": "other"}' * 10)
    assert "not a safetensors file" in refuse(path, small())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(tmp_path, value):
    module = small()
    with torch.no_grad():
        module.layers[1].project.conv.weight[0, 0] = value
    path = save_weights(tmp_path / "w", module)
    assert "holds NaN or infinity" in refuse(path, small())


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        save_weights(tmp_path / "file" / "w", small())


def test_resuming_equals_going_on(tmp_path):
    path = tmp_path / "checkpoint"
    whole = tiny()
    whole_optimizer = optimizer_of(whole)
    train(whole, whole_optimizer, 3)
    save_checkpoint(path, "recipe", 3, whole, whole_optimizer)
    train(whole, whole_optimizer, 3, start=3)
    resumed = tiny(1)
    resumed_optimizer = optimizer_of(resumed)
    assert load_checkpoint(path, "recipe", resumed, resumed_optimizer) == 3
    train(resumed, resumed_optimizer, 3, start=3)
    assert_equal(whole, resumed)


def test_no_checkpoint_is_step_zero(tmp_path):
    module = tiny()
    assert load_checkpoint(tmp_path / "nothing", "recipe", module, optimizer_of(module)) == 0
    assert_equal(module, tiny())


def test_checkpoint_of_another_recipe(tmp_path):
    path, module = tmp_path / "checkpoint", tiny()
    save_checkpoint(path, "recipe", 3, module, optimizer_of(module))
    with pytest.raises(InvalidInputError, match="belongs to another"):
        load_checkpoint(path, "other recipe", module, optimizer_of(module))


def test_truncated_checkpoint(tmp_path):
    path, module = tmp_path / "checkpoint", tiny()
    save_checkpoint(path, "recipe", 3, module, optimizer_of(module))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidInputError, match=r"is damaged.*delete "):
        load_checkpoint(path, "recipe", module, optimizer_of(module))


def rewritten(path, tensors=(), without="", **metadata):
    """The file with some tensors and metadata changed."""
    with safe_open(path, "pt") as file:
        own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = file.metadata()
    own = {k: v for k, v in (own | dict(tensors)).items() if k != without}
    save_file(own, path, said | metadata)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "999999"},
        {"without": "optimizer.0.momentum_buffer"},
        {"tensors": {"model.0.weight": torch.zeros(4, 3, 3, 3)}},
        {"tensors": {"model.more": torch.zeros(1)}},
        {"sha256": "0" * 64},
    ],
    ids=["step", "dropped", "zeros", "added", "digest"],
)
def test_an_edited_checkpoint(tmp_path, change):
    path, module = tmp_path / "checkpoint", tiny()
    optimizer = optimizer_of(module)
    train(module, optimizer, 2)
    save_checkpoint(path, "recipe", 2, module, optimizer)
    rewritten(path, **change)
    fresh = tiny(1)
    with pytest.raises(InvalidInputError, match=r"was edited or damaged.*delete "):
        load_checkpoint(path, "recipe", fresh, optimizer_of(fresh))
    assert_equal(fresh, tiny(1))


def test_a_flipped_bit_in_weights(tmp_path):
    path = save_weights(tmp_path / "w", small())
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert "was edited or damaged" in refuse(path, small())
    save_file(small().state_dict(), path)  # of others: it has no digest
    load_weights(path, small(1))
