"""An accuracy predictor that sees a cell as a graph.

Wen et al. 2020, "Neural predictor for neural architecture search", section 3.2: graph convolutions
along the edges and against them, the mean over the nodes, a linear layer. An operation stands on
an edge in these cells, so that it becomes a node between the two that its edge joins.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from deploynas.search.accuracy_model import Floats
from deploynas.spaces import CellSpace
from deploynas.spaces.cells import KINDS, NUM_INPUTS

WIDTH, DEPTH = 48, 3
STEPS, RATE, DECAY = 200, 5e-3, 1e-3


def fit(space: CellSpace, archs: Floats, accuracies: Floats) -> Callable[[Floats], Floats]:
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


def _graphs(space: CellSpace, archs: Floats) -> tuple[Tensor, Tensor, Tensor]:
    """Of each architecture's two cells, side by side.

    Returns:
        Nodes ``(n, num_nodes, num_kinds)``, one-hot; edges ``(n, num_nodes, num_nodes)``, 1 from
        the second to the first; resolutions ``(n, num_resolutions)``, one-hot.
    """
    rows_of = archs.astype(np.int64)
    table, num = space.table, len(archs)
    per_cell = NUM_INPUTS + table.nodes * (1 + NUM_INPUTS) + 1
    fixed = NUM_INPUTS + 2  # inputs, a node's sum, the output
    nodes = np.zeros((num, len(KINDS) * per_cell, len(KINDS) * (fixed + len(table.operations))))
    edges = np.zeros((num, nodes.shape[1], nodes.shape[1]))
    rows = np.arange(num)
    for kind in range(len(KINDS)):
        first = kind * per_cell
        own = kind * (fixed + len(table.operations))
        output = first + per_cell - 1
        states = np.empty((num, NUM_INPUTS + table.nodes), np.int64)
        for i in range(NUM_INPUTS):
            states[:, i] = first + i
            nodes[:, first + i, own + i] = 1
        nodes[:, output, own + NUM_INPUTS + 1] = 1
        for node, pairs in enumerate(space.pairs):
            column = space.column(kind, node)
            place = first + NUM_INPUTS + node * (1 + NUM_INPUTS)
            states[:, NUM_INPUTS + node] = place
            nodes[:, place, own + NUM_INPUTS] = 1
            edges[:, output, place] = 1
            sources = np.array(pairs)[rows_of[:, column]]
            for i in range(NUM_INPUTS):
                operation = place + 1 + i
                nodes[rows, operation, own + fixed + rows_of[:, column + 1 + i]] = 1
                edges[rows, operation, states[rows, sources[:, i]]] = 1
                edges[:, place, operation] = 1
    resolutions = np.eye(len(space.resolutions))[rows_of[:, 0]]
    return (
        torch.from_numpy(nodes).float(),
        torch.from_numpy(edges).float(),
        torch.from_numpy(resolutions).float(),
    )


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
