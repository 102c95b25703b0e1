"""What a kind of layer promises: its arithmetic, its torch module and its operators agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from deploynas.graph.emit import RandomWeights, StateWeights, emit
from deploynas.graph.emitters import EMITTERS, Float
from deploynas.nn.flops import fvcore_costs
from deploynas.nn.static import MODULES, StaticNetwork, build_layer
from deploynas.nn.supernet import ElasticLayer, recalibrate
from deploynas.spaces import layers as layer_costs
from deploynas.spaces.layers import KINDS, Layer, chain
from deploynas.testing.report import require

PARITY = 1e-4  # of the largest output, where that is above 1
NUM_IMAGES = 4


@torch.no_grad()
def check_layer(layer: Layer) -> None:
    """Check one layer of a kind that may be another package's.

    MACs and params against those of the torch module, its output's shape, the operators in ONNX
    Runtime against it, the bytes of the weights, and that the record says all.

    Raises:
        AssertionError: One of them is not as promised.
    """
    for records, where in (
        (KINDS, "spaces.layers.KINDS"),
        (MODULES, "nn.static.MODULES"),
        (EMITTERS, "graph.emitters.EMITTERS"),
    ):
        require(layer.kind in records, f"{where} has no record of the kind {layer.kind!r}")
    key = layer.key
    again = Layer(**layer.asdict())  # type: ignore[arg-type]
    require(again == layer, f"{key}: the fields do not make the layer again")
    fvcore_costs(layer)  # an AssertionError of its own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = StaticNetwork(chain([layer]))
        perturb(network)
        x = torch.randn(NUM_IMAGES, layer.in_channels, layer.height, layer.width)
    recalibrate(network, [x])
    found = network(x)
    shape: tuple[int, ...] = (NUM_IMAGES, layer.out_channels)
    if not KINDS[layer.kind].ends_network:
        shape += (layer.out_height, layer.out_width)
    require(
        tuple(found.shape) == shape,
        f"{key}: the torch module gives {tuple(found.shape)}, the layer says {shape}",
    )
    require_parity(network, x, key)
    counted = _Counted()
    emit(network.nodes, counted)
    require(
        counted.bytes == layer_costs.weight_bytes(layer),
        f"{key}: weight_bytes is {layer_costs.weight_bytes(layer)}, the file holds "
        f"{counted.bytes}",
    )
    entering = layer.num_inputs * layer.in_channels * layer.height * layer.width
    require(
        layer_costs.peak_activation_bytes(layer) > layer_costs.FLOAT_BYTES * entering,
        f"{key}: peak_activation_bytes is no more than what enters",
    )


@torch.no_grad()
def check_slices(options: Sequence[Layer]) -> None:
    """Check that layers share one set of weights: each computes what its slice computes alone.

    Args:
        options: Of one slot; they differ in kernel size, middle channels or both.

    Raises:
        AssertionError: One does not, or sorting channels changes what the largest computes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        elastic = ElasticLayer(list(options))
        perturb(elastic)
        first = options[0]
        x = torch.randn(NUM_IMAGES, first.in_channels, first.height, first.width)
    elastic.train()
    outputs = []
    for layer in options:
        alone = build_layer(layer)
        alone.load_state_dict(elastic.weights(layer))
        outputs.append(elastic(x, layer))
        require(
            torch.allclose(alone.train()(x), outputs[-1], rtol=1e-4, atol=1e-4),
            f"{layer.key}: the slice of the shared weights computes something else",
        )
    largest = max(options, key=layer_costs.params)
    elastic.sort_channels()
    require(
        torch.allclose(elastic(x, largest), outputs[options.index(largest)], rtol=1e-3, atol=1e-3),
        f"{largest.key}: sorting the channels changed what it computes",
    )


@torch.no_grad()
def perturb(module: nn.Module) -> None:
    """Move every parameter: no batch norm at zero, no kernel matrix at the identity."""
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))


def require_parity(network: StaticNetwork, x: Tensor, name: str) -> None:
    """Check a network, in eval mode, against its operators in ONNX Runtime.

    Args:
        network: Of layers.
        x: ``(n, c, h, w)`` images.
        name: Of it, for the message.

    Raises:
        AssertionError: They differ.
    """
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    content = emit(network.nodes, StateWeights(state)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found = np.concatenate([session.run(None, {"image": one[None].numpy()})[0] for one in x])
    expected = network(x).detach().numpy()
    require(found.shape == expected.shape, f"{name}: {found.shape} in ONNX, {expected.shape} here")
    difference = float(np.abs(found - expected).max())
    allowed = PARITY * max(1.0, float(np.abs(expected).max()))
    require(difference <= allowed, f"{name}: ONNX Runtime and torch differ by {difference:.2g}")


class _Counted(RandomWeights):
    """Adds up what the emitter asks for."""

    bytes = 0

    def conv(
        self, name: str, shape: tuple[int, ...], *, eps: float | None, bias: bool
    ) -> tuple[Float, Float | None]:
        weight, offset = super().conv(name, shape, eps=eps, bias=bias)
        self.bytes += weight.nbytes + (0 if offset is None else offset.nbytes)
        return weight, offset

    def norm(self, name: str, channels: int, *, eps: float) -> tuple[Float, Float]:
        scale, shift = super().norm(name, channels, eps=eps)
        self.bytes += scale.nbytes + shift.nbytes
        return scale, shift
