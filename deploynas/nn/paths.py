"""Weights for any space: every layer that can stand in a slot has its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from deploynas.nn.sharing import WeightSharing
from deploynas.nn.static import StaticNetwork, build_layer, initialise
from deploynas.spaces.base import Archs, SearchSpace


class PathNetwork(WeightSharing):
    """What a family gets that names no network of its own.

    Layers of one slot that differ in the size of their feature maps alone share weights, so that
    weights do not depend on the resolution.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self._names = [replace(layer, height=1, width=1).key for layer in space.layer_table]
        self.slots = nn.ModuleList()
        for slot in space.slots:
            ids = sorted({int(i) for i in slot.layer_ids.ravel() if i >= 0})
            layers = {self._names[i]: space.layer_table[i] for i in ids}
            modules = {name: build_layer(layer) for name, layer in layers.items()}
            self.slots.append(nn.ModuleDict(modules))
        initialise(self)

    def forward(self, x: Tensor, arch: Archs) -> Tensor:
        outputs: list[Tensor | None] = []
        chosen = self._chosen(arch)
        for number, (slot, module) in enumerate(zip(self.space.slots, chosen, strict=True)):
            fed = (x if s < 0 else outputs[s] for s in slot.sources(number, arch))
            inputs = [one for one in fed if one is not None]
            if module is None:
                outputs.append(None if slot.is_silent(arch) else inputs[0])
            else:
                outputs.append(module(*inputs))
        logits = outputs[-1]
        assert logits is not None  # the last slot holds the head
        return logits

    @torch.no_grad()
    def extract(self, arch: Archs) -> StaticNetwork:
        network = StaticNetwork(self.space.layers(arch))
        present = [module for module in self._chosen(arch) if module is not None]
        for target, source in zip(network.layers, present, strict=True):
            target.load_state_dict(source.state_dict())
        return network.to(next(self.parameters()).device).eval()

    def _chosen(self, arch: Archs) -> list[nn.Module | None]:
        """What stands in each slot."""
        ids = self.space.layer_ids(arch.reshape(1, -1))[0]
        found: list[nn.Module | None] = []
        for modules, i in zip(self.slots, ids, strict=True):
            assert isinstance(modules, nn.ModuleDict)
            found.append(None if i < 0 else modules[self._names[i]])
        return found
