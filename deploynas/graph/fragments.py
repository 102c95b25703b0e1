"""Fragments: small networks that operators are timed in, and networks that the sum is proved on.

An operator that is timed alone pays for its session, reorders what it reads and finds it in a
cache; in a network it does not. So none is timed alone: a fragment is a block or a few, as
networks of several families have them, with numbers drawn at random, and what each operator takes
is told from many of them together (:mod:`deploynas.profile.operators`). A *network* is a stem,
four stages of such blocks, and a classifier.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from deploynas.graph.emit import RandomWeights, finished
from deploynas.graph.emitters import GraphBuilder

MIN_MACS = 6e6  # of a fragment, where it is no network
SIDES = (224, 192, 160, 128)  # of the images that feature maps are of
ACTIVATIONS = ("Relu", "Clip", "HardSwish", "Swish")
INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Fragment:
    """One of the grid.

    Attributes:
        name: Its recipe and number.
        seed: What its numbers are drawn by.
        is_network: Whether it is a whole network.
    """

    name: str
    seed: int
    is_network: bool

    @property
    def recipe(self) -> str:
        """What it is made of."""
        return self.name.rpartition("-")[0]


def grid() -> list[Fragment]:
    """All fragments and networks, in a fixed order, the kinds mixed."""
    parts = [
        Fragment(f"{name}-{i}", i, False) for name, (_, count) in RECIPES.items()
        for i in range(count)
    ]  # fmt: skip
    parts += [Fragment(f"network-{i}", i, True) for i in range(NUM_NETWORKS)]
    return [parts[i] for i in np.random.default_rng(0).permutation(len(parts))]


def build(fragment: Fragment) -> onnx.ModelProto:
    """The model of a fragment; the same at every call."""
    rng = np.random.default_rng([zlib.crc32(fragment.recipe.encode()), fragment.seed])
    net = _network(rng, fragment.seed) if fragment.is_network else _piece(fragment, rng)
    return net.model()


class Net:
    """A network under construction: a feature map, and what it grows by.

    Attributes:
        x: Name of the feature map.
        channels, height, width: Of it.
        macs: Multiply-adds so far, and what else takes as long as so many.
        is_done: Whether nothing can follow.
    """

    def __init__(self, channels: int, side: int, seed: int, rng: np.random.Generator) -> None:
        self._weights = RandomWeights(seed)
        self.graph = GraphBuilder(self._weights)
        self.rng = rng
        self.x, self.channels, self.height, self.width = "image", channels, side, side
        self.macs, self.is_done = 0.0, False
        self._image = (1, channels, side, side)
        self._output: tuple[int, ...] | None = None

    def conv(
        self, out: int, kernel: int | tuple[int, int] = 1, stride: int = 1, groups: int = 1,
        act: str = "",
    ) -> Net:  # fmt: skip
        """A convolution that keeps the side or divides it by ``stride``, and an activation."""
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        shape = (out, self.channels // groups, high, wide)
        name = f"conv{len(self.graph.nodes)}"
        weight, bias = self._weights.conv(name, shape, eps=1e-5, bias=True)
        assert bias is not None
        inputs = [
            self.x, self.graph.constant(f"{name}.weight", weight),
            self.graph.constant(f"{name}.bias", bias),
        ]  # fmt: skip
        self.x = self.graph.op(
            "Conv", inputs, kernel_shape=[high, wide], strides=[stride] * 2, group=groups,
            pads=[high // 2, wide // 2] * 2,
        )  # fmt: skip
        self._stride(stride)
        self.channels = out
        self.macs += math.prod(shape) * self.height * self.width
        return self.act(act)

    def act(self, kind: str) -> Net:
        """An activation by name; none for an empty one."""
        if kind == "Swish":
            self.x = self.op("Mul", self.x, self.op("Sigmoid", self.x))
        elif kind == "Clip":
            limits = [self.constant(np.array(v, np.float32)) for v in (0, 6)]
            self.x = self.op("Clip", self.x, *limits)
        elif kind == "Gelu":
            root, one, half = (
                self.constant(np.array(v, np.float32)) for v in (math.sqrt(2), 1.0, 0.5)
            )
            error = self.op("Erf", self.op("Div", self.x, root))
            self.x = self.op("Mul", self.op("Mul", self.x, self.op("Add", error, one)), half)
        elif kind:
            self.x = self.op(kind, self.x)
        return self

    def pool(self, kind: str, kernel: int, stride: int) -> Net:
        """A pool that keeps the side or divides it."""
        self.x = self.graph.op(
            kind, [self.x], kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[kernel // 2] * 4 if kernel % 2 else [0, 0, self.height % 2, self.width % 2],
        )  # fmt: skip
        self._stride(stride)
        return self

    def gate(self, squeezed: int, act: str, last: str, pool: str) -> Net:
        """Squeeze and excitation."""
        x, channels, size = self.x, self.channels, (self.height, self.width)
        reduce = {"axes": [2, 3], "keepdims": 1} if pool == "ReduceMean" else {}
        self.x = self.op(pool, x, **reduce)
        self.height = self.width = 1
        self.conv(squeezed, act=act).conv(channels)
        self.x = self.op("Mul", x, self.op(last, self.x))
        self.height, self.width = size
        return self

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """An operator of one output."""
        return self.graph.op(kind, list(inputs), **attributes)

    def constant(self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        """A constant of its own."""
        name = f"constant{len(self.graph.initializers)}"
        return self.graph.constant(name, array)

    def by_channel(self, shape: tuple[int, ...]) -> str:
        """A random constant of ``shape``."""
        drawn, _ = self._weights.norm("", max(shape), eps=1e-5)
        return self.constant(drawn.reshape(shape))

    def linear(self, out: int, features: int) -> Net:
        """A matrix product with constants, of the last side."""
        weight, _ = self._weights.conv("", (features, out), eps=None, bias=False)
        self.x = self.op("MatMul", self.x, self.constant(weight))
        self.x = self.op("Add", self.x, self.by_channel((out,)))
        self.macs += features * out * self.height * self.width
        return self

    def reshape(self, *shape: int) -> Net:
        """The same numbers in another shape."""
        self.x = self.op("Reshape", self.x, self.constant(np.array(shape, np.int64)))
        return self

    def slice(self, start: int, end: int) -> str:
        """Some channels."""
        ends = [self.constant(np.array([v], np.int64)) for v in (start, end, 1)]
        return self.op("Slice", self.x, *ends)

    def classify(self, hidden: int, classes: int) -> Net:
        """A pool over the whole map and linear maps."""
        self.x = self.op("Flatten", self.op("GlobalAveragePool", self.x))
        features = self.channels
        for out in (hidden, classes) if hidden else (classes,):
            self.x = self.graph.linear(f"linear{len(self.graph.nodes)}", self.x, features, out)
            self.macs += features * out
            features = out
        self._output, self.is_done = (1, classes), True
        return self

    def model(self) -> onnx.ModelProto:
        """The model of it."""
        self.graph.rename(self.x, "features")
        shape = self._output or (1, self.channels, self.height, self.width)
        return finished(self.graph, self._image, {"features": shape}, self._weights)

    def _stride(self, stride: int) -> None:
        self.height, self.width = -(-self.height // stride), -(-self.width // stride)


Recipe = Callable[[Net, int, int], None]


def _width(rng: np.random.Generator, low: float, high: float) -> int:
    """Channels, mostly a multiple of 8, sometimes of 4 or 2."""
    step = int(rng.choice([16, 8, 8, 8, 8, 4, 4, 2]))
    drawn = float(np.exp(rng.uniform(math.log(low), math.log(high))))
    return max(step, round(drawn / step) * step)


def _usual(side: int) -> tuple[float, float]:
    """Least and most channels of feature maps of a side."""
    middle = 2600 / max(side, 3)
    return max(8, 0.33 * middle), min(1024, 2.2 * middle)


def _piece(fragment: Fragment, rng: np.random.Generator) -> Net:
    """A feature map and a few blocks of one recipe."""
    recipe, _ = RECIPES[fragment.recipe]
    side = int(rng.choice(SIDES))
    channels = 3
    if recipe is _early:
        side, channels = side >> 1, _width(rng, 12, 32)
    elif recipe is not _stem:
        side >>= int(rng.integers(1, 6))
        channels = _width(rng, *_usual(side))
    net = Net(channels, side, fragment.seed, rng)
    for _ in range(8):
        stride = 2 if rng.random() < 0.2 and net.height > 7 else 1
        recipe(net, _width(rng, *_usual(net.height // stride)), stride)
        if net.is_done or net.macs > MIN_MACS * 2 ** rng.uniform(0, 3):
            break
    return net


def _network(rng: np.random.Generator, seed: int) -> Net:
    """A stem, four stages, a classifier: one family of blocks, or two."""
    side = int(rng.choice(SIDES))
    net = Net(3, side, seed, rng)
    blocks = [name for name, (_, count) in RECIPES.items() if name in STAGES and count]
    first = blocks[seed % len(blocks)]
    pair = [first, first, first, str(rng.choice(blocks))]
    net.conv(_width(rng, 16, 48), 3, 2, act=str(rng.choice(ACTIVATIONS)))
    if rng.random() < 0.4:
        net.pool("MaxPool", 3, 2)
    growth = rng.uniform(1.4, 2.0)
    width, limit = net.channels * rng.uniform(0.8, 1.6), 2 ** rng.uniform(6.6, 9) * 1e6
    for _ in range(4):
        for place in range(int(rng.integers(1, 5))):
            if net.macs > limit:
                break
            stride = 2 if place == 0 and net.height > 5 else 1
            out = net.channels
            if place == 0:
                out = _width(rng, width, width * 1.05)
            RECIPES[str(rng.choice(pair))][0](net, out, stride)
        width *= growth
    if rng.random() < 0.5:
        net.conv(_width(rng, 2 * net.channels, 4 * net.channels + 64), act="Relu")
    return net.classify(int(rng.choice([0, 0, 512, 1280])), 1000)


def _act(net: Net) -> str:
    return str(net.rng.choice(ACTIVATIONS))


def _fits(net: Net, out: int, groups: int) -> int:
    """Channels that so many groups divide."""
    return max(1, round(out / groups)) * groups


def _pointwise(net: Net, out: int, stride: int) -> None:
    net.conv(out, 1, 1, act=str(net.rng.choice(["", *ACTIVATIONS])))


def _dense(net: Net, out: int, stride: int) -> None:
    kernel = int(net.rng.choice([3, 3, 3, 5]))
    net.conv(min(out, 320), kernel, stride, act=str(net.rng.choice(["", "Relu", "Swish"])))


def _oblong(net: Net, out: int, stride: int) -> None:
    kernel = int(net.rng.choice([3, 7]))
    net.conv(min(out, 192), (1, kernel), act="Relu").conv(min(out, 192), (kernel, 1), act="Relu")


def _depthwise(net: Net, out: int, stride: int) -> None:
    act = str(net.rng.choice(["", *ACTIVATIONS]))
    for _ in range(3):
        kernel = int(net.rng.choice([3, 3, 3, 5, 5, 7, 9, 11]))
        net.conv(net.channels, kernel, 1, net.channels, act)
        net.macs += 1.5e6


def _inverted(net: Net, out: int, stride: int, squeeze: float = 0.0, act: str = "") -> None:
    x, channels = net.x, net.channels
    act = act or _act(net)
    middle = round(channels * float(net.rng.choice([1, 2, 3, 4, 6, 6])) / 8) * 8
    if middle > channels:
        net.conv(middle, act=act)
    net.conv(net.channels, int(net.rng.choice([3, 3, 5, 5, 7])), stride, net.channels, act)
    if squeeze:
        inner = "Relu" if act == "Clip" else act
        last = "HardSigmoid" if act == "HardSwish" else "Sigmoid"
        pool = str(net.rng.choice(["GlobalAveragePool", "ReduceMean", "ReduceMean"]))
        net.gate(max(4, round(net.channels * squeeze / 4) * 4), inner, last, pool)
    net.conv(channels if stride == 1 and net.rng.random() < 0.6 else out)
    if stride == 1 and net.channels == channels:
        net.x = net.op("Add", net.x, x)


def _early(net: Net, out: int, stride: int) -> None:
    """Inverted residuals on large maps, which no cache of a core holds."""
    _inverted(net, min(out, 40), stride)


def _grouped(net: Net, out: int, stride: int) -> None:
    width = int(net.rng.choice([4, 8, 16, 16, 24, 32, 48]))
    groups = max(2, min(out, 512) // width)
    net.conv(groups * width, act="Relu").conv(groups * width, 3, stride, groups, act="Relu")


def _tiny(net: Net, out: int, stride: int) -> None:
    """Many calls with little to do in each."""
    net.pool("AveragePool", 2, 2)
    while net.height > 7:
        net.pool("AveragePool", 2, 2)
    net.conv(_width(net.rng, 8, 96))
    for _ in range(int(net.rng.integers(4, 16))):
        net.conv(net.channels, 3, 1, net.channels).conv(_width(net.rng, 8, 96), act="Relu")
        if net.rng.random() < 0.3:
            net.gate(max(4, net.channels // 4), "Relu", "HardSigmoid", "ReduceMean")
        if net.rng.random() < 0.3:
            net.x = net.op("Concat", net.x, net.x, axis=1)
            net.channels *= 2
    net.is_done = True


def _parallel(net: Net, out: int, stride: int) -> None:
    """Branches that are added, as before they are merged into one (Ding et al. 2021, RepVGG)."""
    x, channels, groups = net.x, net.channels, int(net.rng.choice([1, net.channels]))
    ends = []
    for kernel in (3, 1, 1):
        net.x = x
        ends.append(net.conv(channels, kernel, 1, groups).x)
    net.x = x
    _norm(net)
    for end in ends[: int(net.rng.integers(1, 4))]:
        net.x = net.op("Add", net.x, end)
    net.act("Relu").conv(out, act="Relu")


def _excited(net: Net, out: int, stride: int) -> None:
    _inverted(net, out, stride, float(net.rng.choice([1 / 4, 1 / 16, 1 / 24])))


def _basic(net: Net, out: int, stride: int) -> None:
    out, x, channels, before = min(out, 256), net.x, net.channels, (net.height, net.width)
    net.conv(out, 3, stride, act="Relu").conv(out, 3)
    _join(net, x, channels, before, stride)


def _join(net: Net, x: str, channels: int, before: tuple[int, int], stride: int) -> None:
    """Add what entered, by a 1x1 convolution where shapes differ; ReLU."""
    main, out, size = net.x, net.channels, (net.height, net.width)
    if stride > 1 or out != channels:
        net.x, net.channels, (net.height, net.width) = x, channels, before
        x = net.conv(out, 1, stride).x
        net.height, net.width = size
    net.x = net.op("Add", main, x)
    net.act("Relu")


def _bottleneck(net: Net, out: int, stride: int) -> None:
    x, channels, before = net.x, net.channels, (net.height, net.width)
    width = int(net.rng.choice([1, 4, 8, 8, 16, 16, 24]))
    groups = 1 if net.rng.random() < 0.4 else max(1, min(out, 512) // 2 // width)
    middle = _fits(net, min(out, 512) // 2 if groups == 1 else min(out, 512), groups)
    net.conv(middle, act="Relu").conv(middle, 3, stride, groups, act="Relu")
    if net.rng.random() < 0.3:
        net.gate(max(4, middle // 4), "Relu", "Sigmoid", "ReduceMean")
    net.conv(out)
    _join(net, x, channels, before, stride)


def _fire(net: Net, out: int, stride: int) -> None:
    net.conv(max(8, out // 8), act="Relu")
    x, channels = net.x, net.channels
    left = net.conv(out // 2, act="Relu").x
    net.x, net.channels = x, channels
    right = net.conv(out // 2, 3, act="Relu").x
    net.x, net.channels = net.op("Concat", left, right, axis=1), out // 2 * 2
    if stride > 1:
        net.pool("MaxPool", 3, stride)


def _branches(net: Net, out: int, stride: int) -> None:
    x, channels, ends = net.x, net.channels, []
    parts = [max(8, round(out * share / 8) * 8) for share in net.rng.dirichlet([4, 6, 3, 2])]
    for place, part in enumerate(parts):
        net.x, net.channels = x, channels
        if place == 3:
            net.pool(str(net.rng.choice(["MaxPool", "AveragePool"])), 3, 1)
        net.conv(max(8, part // 2) if 0 < place < 3 else part, act="Relu")
        if 0 < place < 3:
            net.conv(part, (3, int(net.rng.choice([3, 5])))[place - 1], act="Relu")
        ends.append(net.x)
    net.x, net.channels = net.op("Concat", *ends, axis=1), sum(parts)
    if stride > 1:
        net.pool("MaxPool", 3, stride)


def _norm_first(net: Net, out: int, stride: int) -> None:
    """A layer of a dense network (Huang et al. 2017): norm and ReLU before, concat behind."""
    growth = int(net.rng.choice([12, 16, 32, 32]))
    maps = [net.x]
    channels = net.channels
    for _ in range(3):
        net.x = maps[0] if len(maps) == 1 else net.op("Concat", *maps, axis=1)
        net.channels = channels
        _norm(net)
        net.act("Relu").conv(4 * growth, act="Relu").conv(growth, 3)
        maps.append(net.x)
        channels += growth
    net.x, net.channels = net.op("Concat", *maps, axis=1), channels
    if stride > 1:
        _norm(net)
        net.act("Relu").conv(_fits(net, channels // 2, 8)).pool("AveragePool", 2, 2)


def _norm(net: Net) -> None:
    shape = (net.channels,)
    scale, shift, mean = (net.by_channel(shape) for _ in range(3))
    variance = net.constant(np.ones(net.channels, np.float32))
    net.x = net.op("BatchNormalization", net.x, scale, shift, mean, variance)


def _shuffle(net: Net, out: int, stride: int) -> None:
    """A unit of ShuffleNetV2 (Ma et al. 2018)."""
    channels = net.channels // 4 * 4
    if channels != net.channels or stride > 1:
        net.conv(_fits(net, max(channels, 16), 4), 3 if stride > 1 else 1, stride, act="Relu")
        channels = net.channels
    half = channels // 2
    if net.rng.random() < 0.5:
        left, right = net.slice(0, half), net.slice(half, INT64_MAX)
    else:
        sizes = net.constant(np.array([half, half], np.int64))
        left, right = (f"split{len(net.graph.nodes)}.{i}" for i in range(2))
        net.graph.nodes.append(
            onnx.helper.make_node("Split", [net.x, sizes], [left, right], axis=1)
        )
    net.x, net.channels = right, half
    net.conv(half, act="Relu").conv(half, 3, 1, half).conv(half, act="Relu")
    net.x, net.channels = net.op("Concat", left, net.x, axis=1), channels
    net.reshape(1, 2, half, net.height, net.width)
    net.x = net.op("Transpose", net.x, perm=[0, 2, 1, 3, 4])
    net.reshape(1, channels, net.height, net.width)


def _ghost(net: Net, out: int, stride: int) -> None:
    """A module of GhostNet (Han et al. 2020)."""
    out, act = _fits(net, out, 2), str(net.rng.choice(["Relu", ""]))
    main = net.conv(out // 2, act=act).x
    net.conv(out // 2, 3, 1, out // 2, act)
    net.x, net.channels = net.op("Concat", main, net.x, axis=1), out
    if net.rng.random() < 0.3:
        net.channels = out - 4
        net.x = net.slice(0, out - 4)
    if stride > 1:
        net.conv(net.channels, int(net.rng.choice([3, 5])), stride, net.channels)


def _mixed(net: Net, out: int, stride: int) -> None:
    """Depthwise convolutions of several sides beside each other (Tan and Le 2019, MixConv)."""
    num = int(net.rng.integers(2, 5))
    middle = _fits(net, 3 * net.channels, 4 * num)
    net.conv(middle, act=str(net.rng.choice(["Relu", "Swish"])))
    x, part, size, ends = net.x, middle // num, (net.height, net.width), []
    for i in range(num):
        net.x, net.channels, (net.height, net.width) = x, middle, size
        net.x, net.channels = net.slice(i * part, (i + 1) * part), part
        ends.append(net.conv(part, 3 + 2 * i, stride, part).x)
    net.x, net.channels = net.op("Concat", *ends, axis=1), middle
    net.act("Relu").conv(out)


def _last_channels(net: Net, out: int, stride: int) -> None:
    """A block of ConvNeXt (Liu et al. 2022), channels last inside."""
    channels, x = net.channels, net.x
    net.conv(channels, int(net.rng.choice([3, 5, 7, 7])), 1, channels)
    net.x = net.op("Transpose", net.x, perm=[0, 2, 3, 1])
    scale, shift = (net.by_channel((channels,)) for _ in range(2))
    net.x = net.op("LayerNormalization", net.x, scale, shift, axis=-1)
    middle = channels * int(net.rng.choice([2, 4]))
    net.linear(middle, channels).act("Gelu").linear(channels, middle)
    if net.rng.random() < 0.5:
        net.x = net.op("Mul", net.x, net.by_channel((channels,)))
    net.x = net.op("Add", net.op("Transpose", net.x, perm=[0, 3, 1, 2]), x)


def _attention(net: Net, out: int, stride: int) -> None:
    """A block of a transformer over the pixels of a small map."""
    while net.height > 16:
        net.conv(net.channels, 3, 2, act="Swish")
    heads = int(net.rng.choice([1, 2, 4]))
    net.conv(_fits(net, min(net.channels, 256), heads * 8))
    channels, tokens = net.channels, net.height * net.width
    net.reshape(1, channels, tokens)
    net.x = net.op("Transpose", net.x, perm=[0, 2, 1])
    scale, shift = (net.by_channel((channels,)) for _ in range(2))
    x, act = net.x, str(net.rng.choice(["Gelu", "Swish", "HardSwish"]))
    net.x = net.op("LayerNormalization", net.x, scale, shift, axis=-1)
    normed, triple = net.x, []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        net.x = normed
        net.linear(channels, channels).reshape(1, tokens, heads, channels // heads)
        triple.append(net.op("Transpose", net.x, perm=perm))
    scores = net.op("MatMul", triple[0], triple[1])
    scores = net.op("Mul", scores, net.constant(np.array(0.1, np.float32)))
    net.x = net.op("MatMul", net.op("Softmax", scores, axis=-1), triple[2])
    net.macs += 2.0 * tokens * tokens * channels
    net.x = net.op("Transpose", net.x, perm=[0, 2, 1, 3])
    net.reshape(1, tokens, channels).linear(channels, channels)
    net.x = x = net.op("Add", net.x, x)
    net.linear(2 * channels, channels).act(act).linear(channels, 2 * channels)
    net.x = net.op("Transpose", net.op("Add", net.x, x), perm=[0, 2, 1])
    net.reshape(1, channels, net.height, net.width)


def _odd(net: Net, out: int, stride: int) -> None:
    """Convolutions with channels that no blocked layout takes."""
    out = min(out, 256) | 1 if net.rng.random() < 0.5 else min(out, 256) // 4 * 4 + 2
    net.conv(out, int(net.rng.choice([1, 1, 3])), stride, act=_act(net))
    if net.rng.random() < 0.6:
        net.conv(out, 3, 1, out, act=_act(net))


def _pooled(net: Net, out: int, stride: int) -> None:
    kind = str(net.rng.choice(["MaxPool", "AveragePool"]))
    kernel = int(net.rng.choice([2, 3, 3, 5]))
    net.pool(kind, kernel, 1 if kernel % 2 and net.rng.random() < 0.5 else 2)
    net.conv(_width(net.rng, *_usual(net.height)), act="Relu")


def _resized(net: Net, out: int, stride: int) -> None:
    net.conv(min(out, 128), act="Relu")
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    mode = str(net.rng.choice(["nearest", "linear"]))
    how = {"nearest_mode": "floor"} if mode == "nearest" else {}
    net.x = net.op(
        "Resize", net.x, "", scales, mode=mode,
        coordinate_transformation_mode="asymmetric" if how else "half_pixel", **how,
    )  # fmt: skip
    net.height, net.width = 2 * net.height, 2 * net.width
    net.conv(max(8, net.channels // 2), 3, 2, act="Relu")


def _loose(net: Net, out: int, stride: int) -> None:
    """Arithmetic and activations that run alone."""
    net.conv(out, act="Relu")
    x = net.x
    for _ in range(3):
        kind = str(net.rng.choice(LOOSE))
        if kind in ("Add", "Mul", "Sub", "Max"):
            net.x = net.op(kind, net.x, x)
        elif kind == "scale":
            net.x = net.op("Mul", net.x, net.by_channel((net.channels, 1, 1)))
        elif kind == "gate":
            net.x = net.op("Mul", net.x, net.op("Sigmoid", net.op("GlobalAveragePool", net.x)))
        elif kind == "mean":
            net.x = net.op("Sub", net.x, net.op("ReduceMean", net.x, axes=[1], keepdims=1))
        else:
            net.act(kind)
        net.macs += 2e6
    net.conv(out, act="Relu")


LOOSE = (
    "Add", "Mul", "Sub", "Max", "scale", "gate", "mean", "Relu", "Sigmoid", "HardSigmoid", "Tanh",
    "Gelu", "LeakyRelu", "Elu", "Sqrt", "Exp", "Swish", "HardSwish", "Clip",
)  # fmt: skip


def _stem(net: Net, out: int, stride: int) -> None:
    """From an image to a first feature map, and further."""
    kernel, act = int(net.rng.choice([3, 3, 3, 7, 4])), _act(net)
    if kernel == 4:
        net.conv(_width(net.rng, 24, 64), 3, 2, act=act).conv(_width(net.rng, 24, 64), 3, 2)
    else:
        net.conv(_width(net.rng, 12, 64), kernel, 2, act=act)
    if net.rng.random() < 0.5:
        net.pool("MaxPool", 3, 2)
    net.is_done = True


def _classified(net: Net, out: int, stride: int) -> None:
    """The end of a network: a wide 1x1, a pool, linear maps of up to some ten megabytes."""
    net.conv(min(2 * out, 1280), act=_act(net))
    net.classify(int(net.rng.choice([0, 0, 512, 1280, 2048])), int(net.rng.choice([100, 1000])))


RECIPES: dict[str, tuple[Recipe, int]] = {
    "pointwise": (_pointwise, 24),
    "dense": (_dense, 24),
    "oblong": (_oblong, 6),
    "depthwise": (_depthwise, 18),
    "inverted": (_inverted, 24),
    "excited": (_excited, 24),
    "early": (_early, 12),
    "grouped": (_grouped, 14),
    "tiny": (_tiny, 10),
    "parallel": (_parallel, 8),
    "basic": (_basic, 12),
    "bottleneck": (_bottleneck, 20),
    "fire": (_fire, 8),
    "branches": (_branches, 10),
    "norm-first": (_norm_first, 8),
    "shuffle": (_shuffle, 12),
    "ghost": (_ghost, 12),
    "mixed": (_mixed, 8),
    "last-channels": (_last_channels, 10),
    "attention": (_attention, 10),
    "odd": (_odd, 12),
    "pooled": (_pooled, 10),
    "resized": (_resized, 6),
    "loose": (_loose, 24),
    "stem": (_stem, 12),
    "classified": (_classified, 12),
}
# those that networks are made of
STAGES = (
    "inverted", "excited", "basic", "bottleneck", "fire", "branches", "norm-first", "shuffle",
    "ghost", "mixed", "last-channels", "dense",
)  # fmt: skip
NUM_NETWORKS = 36
