"""Networks read into groups of channels: what goes together, what stays, what a cut answers."""

from __future__ import annotations

import pytest
import torch
from foreign import EXAMPLE, Concatenated, Residual, Shuffled, conv
from torch import Tensor, nn
from torch.nn import functional as F

from deploynas.errors import InvalidInputError
from deploynas.nn.adapt import read


class Grouped(nn.Module):
    """Groups of channels, which lose alike; a scale by element, and a norm over channels."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 12)
        self.grouped = conv(12, 8, 3, groups=4)
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.stem(x)) * self.scale
        return self.head(self.norm(x.permute(0, 2, 3, 1)).mean((1, 2)))


def sizes(reading):
    return {group.name: group.size for group in reading.groups}


def reasons(reading):
    return {one.name: one.reason for one in reading.frozen}


def narrowed(reading, share=0.5):
    """All groups cut by half, every second channel of each."""
    return {i: range(0, group.size, int(1 / share)) for i, group in enumerate(reading.groups)}


def test_a_residual_network():
    reading = read(Residual(), EXAMPLE)
    assert sizes(reading) == {"stem.0": 8, "block.expand.0": 12, "block.squeeze": 4}
    assert reasons(reading) == {"head": "the network's output"}
    (stem,) = [group for group in reading.groups if group.name == "stem.0"]
    assert stem.layers == ["stem.0", "block.project.0"]  # they are added
    assert [(one.name, one.by) for one in reading.regions] == [("block", "identity")]
    assert [(one.name, one.sizes) for one in reading.kernels] == [("block.spatial.0", (5, 3))]


def test_macs_by_hand():
    reading = read(Residual(), EXAMPLE)
    places = 16 * 16
    whole = places * (9 * 3 * 8 + 8 * 12 + 25 * 12 + 12 * 8) + 2 * 12 * 4 + 8 * 5
    assert reading.macs({}) == whole
    half = places * (9 * 3 * 4 + 4 * 6 + 25 * 6 + 6 * 4) + 2 * 6 * 2 + 4 * 5
    assert reading.macs(narrowed(reading)) == half


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Residual, {"stem.0": 8, "block.expand.0": 12, "block.squeeze": 4}),
        (Concatenated, {"left.0": 4, "right.0": 6, "both.0": 5}),
        # halves and the shuffle lose alike: eight channels of the stem are two of each sort
        (Shuffled, {"stem.0": 8, "inner.0": 12}),
        (Grouped, {"stem.0": 3, "grouped.0": 2}),
    ],
)
def test_what_goes_together(network, expected):
    torch.manual_seed(0)
    reading = read(network(), EXAMPLE)
    assert sizes(reading) == expected
    small = reading.cut(narrowed(reading))
    with torch.no_grad():
        assert small(EXAMPLE).shape == network()(EXAMPLE).shape
    assert sum(p.numel() for p in small.parameters()) < sum(
        p.numel() for p in reading.module.parameters()
    )


def test_what_is_cut_is_what_nothing_reads():
    """The outputs of a cut are those of the whole whose other channels nothing reads."""
    torch.manual_seed(0)
    module = Residual().eval()
    with torch.no_grad():
        module.block.spatial[0].weight[3:] = 0  # what the last nine channels make is a constant
        module.block.spatial[1].bias[3:] = 0
        module.block.spatial[1].running_mean[3:] = 0
        reading = read(module, EXAMPLE)
        (middle,) = [i for i, g in enumerate(reading.groups) if g.name == "block.expand.0"]
        small = reading.cut({middle: [0, 1, 2]})
        torch.testing.assert_close(small(EXAMPLE), module(EXAMPLE))
    assert small.block.spatial[0].groups == 3
    assert type(small) is Residual
    assert module.block.spatial[0].groups == 12  # the user's own is as it was


def test_channels_in_another_order():
    torch.manual_seed(0)
    module = Shuffled().eval()
    reading = read(module, EXAMPLE)
    orders = {i: torch.randperm(g.size).tolist() for i, g in enumerate(reading.groups)}
    with torch.no_grad():
        permuted = reading.cut(orders)
        torch.testing.assert_close(permuted(EXAMPLE), module(EXAMPLE), atol=1e-5, rtol=1e-4)
    assert not torch.equal(permuted.inner[0].weight, module.inner[0].weight)


class Attending(nn.Module):
    """Heads of a fixed size: frozen, the rest is not."""

    def __init__(self):
        super().__init__()
        self.stem, self.middle, self.last = conv(3, 8), nn.Linear(8, 24), nn.Linear(8, 5)
        self.hidden = nn.Linear(8, 16)
        self.back = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        n, t, _ = x.shape
        q, k, v = self.middle(x).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 8)
        return self.last(self.back(F.gelu(self.hidden(x))).mean(1))


def test_attention_is_frozen_and_the_rest_is_not():
    torch.manual_seed(0)
    reading = read(Attending(), EXAMPLE)
    assert sizes(reading) == {"stem.0": 8, "hidden": 16, "back": 8}
    assert "scaled_dot_product_attention is not followed" in reasons(reading)["middle"]


class Fixed(nn.Module):
    """A forward that says how many channels there are."""

    def __init__(self):
        super().__init__()
        self.stem, self.second, self.head = conv(3, 8), conv(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[1] != 8:
            raise RuntimeError("eight channels, please")
        return self.head(self.second(x).mean((2, 3)))


def test_fixed_sizes_are_frozen():
    reading = read(Fixed(), EXAMPLE)
    assert sizes(reading) == {"second.0": 6}
    assert reasons(reading)["stem.0"] == "its forward has fixed sizes: eight channels, please"


class Tied(nn.Module):
    """One convolution, twice: its channels are those of its own input."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.head = conv(3, 8), conv(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(self.twice(self.stem(x))).mean((2, 3)))


def test_what_is_used_twice_goes_together():
    torch.manual_seed(0)
    reading = read(Tied(), EXAMPLE)
    assert sizes(reading) == {"stem.0": 8}
    with torch.no_grad():
        assert reading.cut({0: range(4)})(EXAMPLE).shape == (1, 5)


def test_regions_left_out_and_kernels_cut():
    torch.manual_seed(0)
    module = Residual().eval()
    reading = read(module, EXAMPLE)
    with torch.no_grad():
        module.block.project[1].weight.zero_()
        module.block.project[1].bias.zero_()
        expected = module(EXAMPLE)
        reading.regions[0].leave_out(module)
        torch.testing.assert_close(module(EXAMPLE), expected)
        fresh = Residual().eval()
        side = fresh.block.spatial[0].weight
        side[:, :, 0], side[:, :, 4], side[:, :, :, 0], side[:, :, :, 4] = 0, 0, 0, 0
        expected = fresh(EXAMPLE)
        reading.kernels[0].shrink(fresh, 3)
        torch.testing.assert_close(fresh(EXAMPLE), expected)
        assert fresh.block.spatial[0].weight.shape[2:] == (3, 3)


class Odd(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self._do = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._do(self.layer(x))


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda x: x + torch.rand(1), "answers differently each time"),
        (lambda x: x.nonexistent(), "does not take an input of"),
        (lambda x: x if x.sum() > 0 else -x, "torch.export cannot read Odd"),
        (lambda x: x / 0, "what Odd returns is not numbers"),
        (lambda x: "done", "does not take an input of|is not a tensor"),
        (lambda x: [], "what Odd returns is not a tensor"),
    ],
)
def test_networks_that_cannot_be_read(forward, said):
    with pytest.raises(InvalidInputError, match=said):
        read(Odd(forward), EXAMPLE)


@pytest.mark.parametrize("kept", [{7: [0]}, {0: []}, {0: [0, 0]}, {0: [0, 99]}])
def test_cuts_that_there_are_none_of(kept):
    reading = read(Residual(), EXAMPLE)
    with pytest.raises(InvalidInputError, match="groups, and no 7|of which some stay, each once"):
        reading.cut(kept)


class Uncopied(nn.Module):
    """It holds what cannot be copied, as an open file."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.made = self.layer.weight * 2  # not of the user's making, as torch has it

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_what_cannot_be_copied_is_refused():
    with pytest.raises(InvalidInputError, match="Uncopied cannot be copied"):
        read(Uncopied(), EXAMPLE)


def test_half_precision_is_refused():
    with pytest.raises(InvalidInputError, match="is float16, and float32 is needed"):
        read(Residual().half(), EXAMPLE)
