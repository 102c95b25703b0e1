"""An accuracy predictor that sees a cell as a graph.

Wen et al. 2020, "Neural predictor for neural architecture search", section 3.2: graph convolutions
along the edges and against them, the mean over the nodes, a linear layer. An operation stands on
an edge in these cells, so that it becomes a node between the two that its edge joins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deploynas.search.accuracy_model import Floats
from deploynas.spaces import SearchSpace

WIDTH, DEPTH = 48, 3
STEPS, RATE, DECAY = 200, 5e-3, 1e-3


def fit(space: SearchSpace, archs: Floats, accuracies: Floats) -> Callable[[Floats], Floats]:
    """A model of accuracies, fitted to pairs; the same pairs give the same model.

    Args:
        space: Of the architectures.
        archs: ``(n, num_choices)``.
        accuracies: ``(n,)``.
    """
    mean, spread = float(accuracies.mean()), float(accuracies.std()) + 1e-9
    target = torch.from_numpy((accuracies - mean) / spread).float()
    graphs = _graphs(space, archs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _Network(graphs[0].shape[2], len(space.resolutions))
        adam = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
        for _ in range(STEPS):
            rows = torch.randperm(len(archs))[:128]
            loss = nn.functional.mse_loss(network(*(g[rows] for g in graphs)), target[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()

    @torch.no_grad()
    def predict(new: Floats) -> Floats:
        found: Floats = network(*_graphs(space, new)).double().numpy() * spread + mean
        return found

    return predict


def _graphs(space: SearchSpace, archs: Floats) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, edges and resolutions of architectures: see :class:`deploynas.spaces.Graphs`."""
    found = space.graphs(space.as_rows(archs))
    assert found is not None  # asked of spaces that have them
    nodes, edges, sides = map(torch.from_numpy, (found.nodes, found.edges, found.sides))
    return nodes.float(), edges.float(), sides.float()


class _Network(nn.Module):
    def __init__(self, num_kinds: int, num_resolutions: int) -> None:
        super().__init__()
        widths = [num_kinds, *[WIDTH] * DEPTH]
        pairs = list(zip(widths, widths[1:], strict=False))
        self.along = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.against = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.head = nn.Linear(WIDTH + num_resolutions, 1)

    def forward(self, nodes: Tensor, edges: Tensor, resolutions: Tensor) -> Tensor:
        """``(n,)``."""
        loops = torch.eye(edges.shape[1])
        both = edges + loops, edges.transpose(1, 2) + loops
        forth, back = (one / one.sum(2, keepdim=True) for one in both)
        x = nodes
        for along, against in zip(self.along, self.against, strict=True):
            x = (along(forth @ x).relu() + against(back @ x).relu()) / 2
        found: Tensor = self.head(torch.cat([x.mean(1), resolutions], 1))[:, 0]
        return found
