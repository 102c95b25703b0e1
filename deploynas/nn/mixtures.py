"""Networks whose candidates run all at once, weighted (Liu et al. 2019, "DARTS", section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from deploynas.nn.candidates import MixedLayer, MixedNetwork, require_one_resolution
from deploynas.nn.cells import CellModule, CellNetwork
from deploynas.spaces.base import Archs, SearchSpace
from deploynas.spaces.cells import KINDS, NONE, NUM_INPUTS, CellSpace


@dataclass(frozen=True)
class RowCosts:
    """What the candidates of a mixture add to a sum over layers.

    Attributes:
        constant: Of what is in every network.
        rows: ``(num_rows, most_candidates)``; 0 where there is none.
        shares: ``(num_rows, 1)`` how often a row is in a network.
    """

    constant: float
    rows: np.ndarray
    shares: np.ndarray


class Mixture(nn.Module):
    """What the two networks share: rows of candidates, of which some may be pruned.

    Attributes:
        present: ``(num_rows, most_candidates)``: what exists and was not pruned.
        first: Candidates before it, ``none``, are not operations: they are never pruned and cost
            nothing.
        has_skips: Whether there are skips, which a mixture is known to collapse to.
    """

    present: Tensor
    first = 0
    has_skips = False

    @property
    def rows(self) -> Sequence[nn.Parameter]:
        """``(num_candidates,)`` parameters a row."""
        raise NotImplementedError

    @property
    def row_names(self) -> list[tuple[str, tuple[str, ...]]]:
        """A name a row, and those of its candidates."""
        raise NotImplementedError

    def costs_of(self, values: np.ndarray) -> RowCosts:
        """What the candidates add to a sum over layers.

        Args:
            values: ``(len(layer_table),)``.
        """
        raise NotImplementedError

    def in_words(self, arch: Archs) -> str:
        """What tells a network from others, for a progress line."""
        raise NotImplementedError

    def num_skips(self, arch: Archs) -> int:
        """Skips of a network, where there can be any."""
        return 0

    def _mark_all_present(self) -> None:
        lengths = torch.tensor([len(row) for row in self.rows])
        most = int(lengths.max()) if len(lengths) else 0
        self.register_buffer("present", torch.arange(most)[None, :] < lengths[:, None])

    def mixtures(self, gate: str) -> Tensor:
        """``(num_rows, most_candidates)`` weights; 0 for what is not there.

        Args:
            gate: ``softmax`` over a row, or ``sigmoid`` of each candidate.
        """
        if not len(self.rows):
            return self.present.float()
        raw = nn.utils.rnn.pad_sequence(list(self.rows), batch_first=True)
        if gate == "sigmoid":
            return raw.sigmoid() * self.present
        return raw.masked_fill(~self.present, -torch.inf).softmax(1)

    def forward_mixed(self, x: Tensor, mixtures: Tensor) -> Tensor:
        """Logits ``(n, num_classes)`` with every candidate that is present, weighted."""
        raise NotImplementedError

    def prune(self, keep: int, mixtures: Tensor) -> None:
        """Leave the ``keep`` strongest operations of every row."""
        for row, present in zip(mixtures.detach().clone(), self.present, strict=True):
            row[~present] = -1.0
            row[: self.first] = -1.0
            kept = row.argsort(descending=True, stable=True)[: min(keep, int((row >= 0).sum()))]
            present[self.first :] = False
            present[kept] = True


class MixedCells(CellNetwork, Mixture):
    """A cell network whose every edge runs all its operations.

    Attributes:
        edges: Kind, node and source of every row; cells of a kind share it. Its candidates are
            ``none``, then the operations.
        row_of: The reverse.
    """

    first = 1
    has_skips = True

    def __init__(self, space: CellSpace) -> None:
        require_one_resolution(space)
        super().__init__(space)
        self.edges = [
            (kind, node, source)
            for kind in range(len(KINDS))
            for node in range(space.table.nodes)
            for source in range(NUM_INPUTS + node)
        ]
        self.row_of = {edge: i for i, edge in enumerate(self.edges)}
        num = 1 + len(space.table.operations)
        self.alphas = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(num)) for _ in self.edges)
        self._mark_all_present()

    @property
    def rows(self) -> list[nn.Parameter]:
        return list(self.alphas)

    @property
    def weights(self) -> list[nn.Parameter]:
        """Every parameter but the mixtures'."""
        own = {id(alpha) for alpha in self.alphas}
        return [p for p in self.parameters() if id(p) not in own]

    @property
    def row_names(self) -> list[tuple[str, tuple[str, ...]]]:
        operations = (NONE, *self.space.table.operations)
        return [
            (f"{KINDS[kind]} {source} to {NUM_INPUTS + node}", operations)
            for kind, node, source in self.edges
        ]

    def costs_of(self, values: np.ndarray) -> RowCosts:
        edges = self.space.edge_costs(values)
        # a node keeps two of its edges, each as often as any other
        shares = [NUM_INPUTS / len(edge) for edge in edges for _ in edge]
        rows = np.pad(np.concatenate(edges), ((0, 0), (self.first, 0)))
        return RowCosts(self.space.constant_of(values), rows, np.array(shares)[:, None])

    def in_words(self, arch: Archs) -> str:
        return f"{self.num_skips(arch)} skips in the normal cell"

    def num_skips(self, arch: Archs) -> int:
        return self.space.num_skips(arch)

    def forward_mixed(self, x: Tensor, mixtures: Tensor) -> Tensor:
        def add(kind: int, node: int, states: list[Tensor], cell: CellModule) -> Tensor:
            total: Tensor | None = None
            for source in range(NUM_INPUTS + node):
                row = self.row_of[kind, node, source]
                for option, operation in enumerate(cell.edge(node, source), 1):
                    if not bool(self.present[row, option]):
                        continue
                    part = mixtures[row, option] * operation(states[source])
                    total = part if total is None else total + part
            assert total is not None  # pruning leaves an operation on every edge
            return total

        return self.run(x, add)


class MixedBlocks(MixedNetwork, Mixture):
    """A network of candidate operations whose every block runs all of them.

    Each has weights of its own, as in DARTS; a row is a block.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space, shared=False)
        for alpha in self.alphas:
            nn.init.normal_(alpha, std=1e-3)
        self._mark_all_present()

    @property
    def rows(self) -> list[nn.Parameter]:
        return self.alphas

    @property
    def row_names(self) -> list[tuple[str, tuple[str, ...]]]:
        choices = [self.space.choices[layer.column] for layer in self.mixed]
        return [(choice.name, tuple(map(str, choice.options))) for choice in choices]

    def costs_of(self, values: np.ndarray) -> RowCosts:
        padded = np.append(values, np.zeros(1, values.dtype))  # index -1: the identity
        rows = np.zeros(self.present.shape)
        for row, layer in zip(rows, self.mixed, strict=True):
            row[: len(layer.layer_ids)] = padded[layer.layer_ids]
        constant = float(padded[self.fixed_layer_ids].sum())
        return RowCosts(constant, rows, np.ones((len(rows), 1)))

    def in_words(self, arch: Archs) -> str:
        return self.digits(arch)

    def forward_mixed(self, x: Tensor, mixtures: Tensor) -> Tensor:
        nowhere: Archs = self.row([0] * len(self.mixed))
        row = 0
        for part in self._parts:
            if not isinstance(part, MixedLayer):
                x = part(x, nowhere)
                continue
            arch = nowhere.copy()
            outs = []
            for option in self.present[row].nonzero()[:, 0].tolist():
                arch[part.column] = option
                outs.append(mixtures[row, option] * part(x, arch))
            x = torch.stack(outs).sum(0) if len(outs) > 1 else outs[0]
            row += 1
        return x
