"""The once-for-all supernet (Cai et al. 2020): one set of weights for every architecture.

A slot of the space keeps the weights of its largest layer. A smaller layer uses the first
channels; a smaller kernel is the centre of the larger one times a transformation matrix per
step (7 -> 5 -> 3; section 3.3, "elastic kernel size"). ``forward`` and ``extract`` share one
slicing function, so that an extracted network computes what the supernet computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploynas.errors import InvalidInputError
from deploynas.nn.lending import Lender, Loan
from deploynas.nn.ofa_weights import load_published
from deploynas.nn.sharing import WeightSharing
from deploynas.nn.static import MODULES, StaticNetwork, build_layer, initialise
from deploynas.spaces import layers as layer_costs
from deploynas.spaces.base import Archs, SearchSpace
from deploynas.spaces.layers import Layer


class ElasticLayer(nn.Module):
    """The weights of the largest layer of one slot, sliced on demand.

    Args:
        options: Every layer that can stand in the slot; they differ in kernel size and
            channels (and side, which holds no weights), and one has the most of each.
    """

    def __init__(self, options: list[Layer]) -> None:
        super().__init__()
        largest = max(options, key=layer_costs.params)
        self.full = build_layer(largest)
        self._sort_channels = MODULES[largest.kind].sort_channels
        self._places = _places(self.full)
        self._kernel_sizes = sorted({o.kernel_size for o in options}, reverse=True)
        self._shells: dict[Layer, _Shell] = {}
        for large, small in zip(self._kernel_sizes, self._kernel_sizes[1:], strict=False):
            matrix = nn.Parameter(torch.eye(small * small))
            self.register_parameter(f"kernel_{large}to{small}", matrix)

    def weights(self, layer: Layer, *, buffers: bool = True) -> dict[str, Tensor]:
        """State of the static module of ``layer``: differentiable slices of the full weights."""
        shapes = self._shell(layer).shapes
        return {
            name: self.cut(tensor, shapes[name])
            for name, registry, key in self._places
            if name in shapes
            and (tensor := registry[key]) is not None
            and (buffers or isinstance(tensor, nn.Parameter))
        }

    def lend(self, layer: Layer, lender: Lender) -> Loan:
        """The static module of ``layer`` in training mode, on slices of the full weights."""
        with torch.device("meta"):
            module = build_layer(layer).train()
        full = {name: registry[key] for name, registry, key in self._places}
        sources: list[nn.Parameter] = []
        lent = _Lent(self, module)
        for name, registry, key in _places(module):
            source, wanted = full[name], registry[key]
            if not isinstance(source, nn.Parameter) or wanted is None:
                continue
            sources.append(source)
            num = len(wanted)  # the first outputs lie side by side in memory
            part = nn.Parameter(source.detach()[:num])
            part.grad = lender.gradient(source)[:num]
            registry[key] = part
            if part.shape != wanted.shape:
                lent.cut(module.get_submodule(name.rpartition(".")[0]), key, wanted.shape)
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):  # batch statistics only
                norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        sources += self._matrices(layer.kernel_size)
        return Loan(lent, tuple(sources))

    def _matrices(self, kernel_size: int) -> list[nn.Parameter]:
        """What transforms the largest kernel into one of ``kernel_size``, in order."""
        pairs = zip(self._kernel_sizes, self._kernel_sizes[1:], strict=False)
        return [
            getattr(self, f"kernel_{large}to{small}")
            for large, small in pairs
            if large > kernel_size
        ]

    def _shell(self, layer: Layer) -> _Shell:
        if layer not in self._shells:
            self._shells[layer] = _Shell(layer)
        return self._shells[layer]

    def sort_channels(self) -> None:
        """Sort the middle channels, where there are any that smaller layers leave out."""
        if self._sort_channels is not None:
            self._sort_channels(self.full)

    def cut(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """The part of a full weight that a smaller layer uses."""
        if tensor.dim() == 4 and tensor.shape[-1] != shape[-1]:
            return self._shrink_kernel(tensor[: shape[0]], shape[-1])
        for dim, length in enumerate(shape):
            if tensor.shape[dim] != length:
                tensor = tensor.narrow(dim, 0, length)
        return tensor

    def _shrink_kernel(self, weight: Tensor, kernel_size: int) -> Tensor:
        for matrix in self._matrices(kernel_size):
            small = math.isqrt(len(matrix))
            border = (weight.shape[-1] - small) // 2
            centre = weight[:, :, border : border + small, border : border + small]
            weight = (centre.flatten(2) @ matrix.T).view_as(centre)
        return weight

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        """Run ``layer`` with sliced weights; batch statistics in training mode."""
        weights = self.weights(layer, buffers=not self.training)
        return self._shells[layer].run(x, weights, self.training)


class _Lent(nn.Module):
    """A lent layer, some of whose weights are cut out of larger ones at every pass."""

    def __init__(self, lender: ElasticLayer, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._lender = [lender]  # in a list: no submodule
        self._cuts: list[tuple[dict[str, Any], str, nn.Parameter, torch.Size]] = []

    def cut(self, owner: nn.Module, name: str, shape: torch.Size) -> None:
        """From now on cut a module's parameter to ``shape``."""
        whole = owner._parameters.pop(name)
        assert whole is not None
        self._cuts.append((owner.__dict__, name, whole, shape))

    def forward(self, x: Tensor) -> Tensor:
        for place, name, whole, shape in self._cuts:
            place[name] = self._lender[0].cut(whole, shape)
        out: Tensor = self.module(x)
        for place, name, _, _ in self._cuts:
            place[name] = None  # else it would keep the pass's graph alive
        return out


def _places(module: nn.Module) -> list[tuple[str, dict[str, Any], str]]:
    """Full name, registry and name there of every parameter and buffer."""
    return [
        (f"{prefix}.{name}" if prefix else name, registry, name)
        for prefix, part in module.named_modules()
        for registry in (part._parameters, part._buffers)
        for name in registry
    ]


class _Shell:
    """A static module whose tensors are lent for one forward pass.

    Parameters are moved out of the module's registry into plain attributes, so that lending
    costs a dictionary write each and autograd sees the slices.
    """

    def __init__(self, layer: Layer) -> None:
        with torch.device("meta"):
            self._module = build_layer(layer)
        self.shapes: dict[str, torch.Size] = {}
        self._places: dict[str, tuple[dict[str, object], str]] = {}
        self._norms = [m for m in self._module.modules() if isinstance(m, nn.BatchNorm2d)]
        for prefix, module in self._module.named_modules():
            for registry in (module._parameters, module._buffers):
                for name, tensor in list(registry.items()):
                    if tensor is None:
                        continue
                    full = f"{prefix}.{name}" if prefix else name
                    self.shapes[full] = tensor.shape
                    self._places[full] = (module.__dict__, name)
                    del registry[name]
                    module.__dict__[name] = None

    def run(self, x: Tensor, weights: Mapping[str, Tensor], training: bool) -> Tensor:
        for name, tensor in weights.items():
            registry, key = self._places[name]
            registry[key] = tensor
        for norm in self._norms:
            norm.training = training
        out: Tensor = self._module(x)
        for registry, key in self._places.values():
            registry[key] = None
        return out


class Supernet(WeightSharing):
    """Weight-sharing supernet of a search space.

    Batch-norm statistics are not tracked in training: every subnet needs its own, which
    :func:`recalibrate` sets on an extracted network.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.slots = nn.ModuleList(
            ElasticLayer([space.layer_table[i] for i in set(slot.layer_ids.ravel()) if i >= 0])
            for slot in space.slots
        )
        initialise(self)

    def forward(self, x: Tensor, arch: Archs) -> Tensor:
        """Logits ``(n, num_classes)`` of images ``(n, c, r, r)`` under one architecture."""
        for slot, layer in self._active(arch):
            x = self.slots[slot](x, layer)
        return x

    def load_ofa(self, path: str | Path) -> None:
        """Take the weights of a published once-for-all supernet.

        Every extracted network then computes what the published code computes for the same
        architecture, sliced batch-norm statistics included (which are those of the largest
        network: :func:`recalibrate` before measuring accuracy).

        Raises:
            MissingFileError, InvalidInputError: See :func:`load_published`.
        """
        load_published(Path(path), self, "slots.{}.full.", len(self.slots))

    def lend(self, arch: Archs, lender: Lender) -> Loan:
        """The subnet of ``arch`` in training mode, on this network's own weights."""
        return lender.chain(
            [lender.layer(self._elastic(slot), layer) for slot, layer in self._active(arch)]
        )

    def _elastic(self, slot: int) -> ElasticLayer:
        found = self.slots[slot]
        assert isinstance(found, ElasticLayer)
        return found

    @torch.no_grad()
    def sort_channels(self) -> None:
        """Sort each block's middle channels by importance, the first being the most important.

        A narrow subnet keeps the first channels. Importance is the L1 norm of the weights that
        read a channel (Cai et al. 2020, section 3.3, "elastic width"). Batch norms and the SE
        layer are permuted along, so that the largest network computes what it did.
        """
        for slot in range(len(self.slots)):
            self._elastic(slot).sort_channels()

    @torch.no_grad()
    def extract(self, arch: Archs) -> StaticNetwork:
        """The static network of ``arch`` with copies of its slices of the weights."""
        active = self._active(arch)
        network = StaticNetwork(self.space.layers(arch))
        for module, (slot, layer) in zip(network.layers.children(), active, strict=True):
            weights = self._elastic(slot).weights(layer)
            module.load_state_dict({k: v.detach().clone() for k, v in weights.items()})
        device = next(self.parameters()).device
        return network.to(device).eval()

    def _active(self, arch: Archs) -> list[tuple[int, Layer]]:
        ids = self.space.layer_ids(arch.reshape(1, -1))[0]
        return [(slot, self.space.layer_table[i]) for slot, i in enumerate(ids) if i >= 0]


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the batch-norm statistics of an extracted network from ``batches`` of images.

    Statistics of each batch, averaged over all batches (Yu and Huang 2019, section 3; about
    2,000 training images at the network's resolution are enough). Ends in eval mode.

    Raises:
        InvalidInputError: There is no image.
    """
    filled = (batch for batch in batches if len(batch))
    first = next(filled, None)
    if first is None:
        raise InvalidInputError("there are no images to set the batch norms' statistics from")
    module.eval()  # what else has a training mode, as dropout, is no part of statistics
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for batch in itertools.chain([first], filled):
        module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
