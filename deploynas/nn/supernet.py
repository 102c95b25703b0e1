"""The once-for-all supernet (Cai et al. 2020): one set of weights for every architecture.

A slot of the space keeps the weights of its largest layer. A smaller layer uses the first
channels; a smaller kernel is the centre of the larger one times a transformation matrix per
step (7 -> 5 -> 3; section 3.3, "elastic kernel size"). ``forward`` and ``extract`` share one
slicing function, so that an extracted network computes what the supernet computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from deploynas.errors import InvalidInputError
from deploynas.nn.published import load_published
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
        self._kernel_sizes = sorted({o.kernel_size for o in options}, reverse=True)
        self._shells: dict[Layer, _Shell] = {}
        for large, small in zip(self._kernel_sizes, self._kernel_sizes[1:], strict=False):
            matrix = nn.Parameter(torch.eye(small * small))
            self.register_parameter(f"kernel_{large}to{small}", matrix)

    def weights(self, layer: Layer) -> dict[str, Tensor]:
        """State of the static module of ``layer``: differentiable slices of the full weights."""
        if layer not in self._shells:
            self._shells[layer] = _Shell(layer)
        shapes = self._shells[layer].shapes
        return {
            name: self._slice(tensor, shapes[name])
            for name, tensor in self._full_state().items()
            if name in shapes
        }

    def _full_state(self) -> dict[str, Tensor]:
        return {**dict(self.full.named_parameters()), **dict(self.full.named_buffers())}

    def sort_channels(self) -> None:
        """Sort the middle channels, where there are any that smaller layers leave out."""
        if self._sort_channels is not None:
            self._sort_channels(self.full)

    def _slice(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        if tensor.shape == shape:
            return tensor
        if tensor.dim() == 4 and tensor.shape[-1] != shape[-1]:
            return self._shrink_kernel(tensor[: shape[0]], shape[-1])
        return tensor[tuple(slice(0, n) for n in shape)]

    def _shrink_kernel(self, weight: Tensor, kernel_size: int) -> Tensor:
        for large, small in zip(self._kernel_sizes, self._kernel_sizes[1:], strict=False):
            if large <= kernel_size:
                break
            border = (large - small) // 2
            centre = weight[:, :, border : border + small, border : border + small]
            matrix = getattr(self, f"kernel_{large}to{small}")
            weight = (centre.flatten(2) @ matrix.T).view_as(centre)
        return weight

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        """Run ``layer`` with sliced weights; batch statistics in training mode."""
        weights = self.weights(layer)
        return self._shells[layer].run(x, weights, self.training)


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
            if training:  # batch statistics only: running ones belong to one subnet
                norm.__dict__["running_mean"] = norm.__dict__["running_var"] = None
                norm.__dict__["num_batches_tracked"] = None
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

    @torch.no_grad()
    def sort_channels(self) -> None:
        """Sort each block's middle channels by importance, the first being the most important.

        A narrow subnet keeps the first channels. Importance is the L1 norm of the weights that
        read a channel (Cai et al. 2020, section 3.3, "elastic width"). Batch norms and the SE
        layer are permuted along, so that the largest network computes what it did.
        """
        for slot in self.slots:
            assert isinstance(slot, ElasticLayer)
            slot.sort_channels()

    @torch.no_grad()
    def extract(self, arch: Archs) -> StaticNetwork:
        """The static network of ``arch`` with copies of its slices of the weights."""
        active = self._active(arch)
        network = StaticNetwork(self.space.layers(arch))
        for module, (slot, layer) in zip(network.layers.children(), active, strict=True):
            elastic = self.slots[slot]
            assert isinstance(elastic, ElasticLayer)
            weights = elastic.weights(layer)
            module.load_state_dict({k: v.detach().clone() for k, v in weights.items()})
        device = next(self.parameters()).device
        return network.to(device).eval()

    def _active(self, arch: Archs) -> list[tuple[int, Layer]]:
        ids = self.space.layer_ids(arch.reshape(1, -1))[0]
        return [(slot, self.space.layer_table[i]) for slot, i in enumerate(ids) if i >= 0]


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the batch-norm statistics of an extracted network from ``batches`` of images.

    Train-mode statistics, averaged over all batches (Yu and Huang 2019, section 3; about
    2,000 training images at the network's resolution are enough). Ends in eval mode.

    Raises:
        InvalidInputError: There is no image.
    """
    filled = (batch for batch in batches if len(batch))
    first = next(filled, None)
    if first is None:
        raise InvalidInputError("there are no images to set the batch norms' statistics from")
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    module.train()
    for batch in itertools.chain([first], filled):
        module(batch)
    for norm in norms:
        norm.momentum = 0.1
    module.eval()
