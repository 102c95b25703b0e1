"""Forward and backward passes of networks that share weights, one after the other.

A small network's pass on a GPU is launches and Python, not arithmetic. A pass that recurs is
recorded as a CUDA graph and replayed; of any other the backward pass is launched while Python
prepares what comes next. What is computed, and in which order, stays the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deploynas.nn import Lender, Loan
from deploynas.nn.norm import is_distributed
from deploynas.train.loop import Recipe

RECORD_AT = 2  # the occurrence of a pass at which it is recorded
MAX_RECORDED = 64
BACKWARD_BESIDE = True  # of passes that are not recorded

Outputs = tuple[Tensor, ...]


class Passes:
    """Passes whose gradients add up over a step.

    Args:
        loss: Of outputs and targets.
        recipe: How.
        device: Where.

    Attributes:
        lender: Of the networks.
    """

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], recipe: Recipe, device: torch.device
    ) -> None:
        self.lender = Lender()
        self._loss, self._recipe, self._device = loss, recipe, device
        self._recorder: _Recorder | None = None
        self._beside: ThreadPoolExecutor | None = None
        if device.type == "cuda" and not is_distributed():
            self._recorder = _Recorder()
            self._beside = ThreadPoolExecutor(1)
        self._running: list[Future[None]] = []

    def whole(self, network: nn.Module) -> Loan:
        """A network that trains all of its own weights."""
        return Loan(network, tuple(network.parameters()) if self._recorder else ())

    def run(
        self, key: bytes, lend: Callable[[Lender], Loan], x: Tensor, targets: Tensor,
        scaled: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> Outputs:  # fmt: skip
        """One network's pass on images ``(n, c, h, w)``; the loss and the output.

        Args:
            key: Of what recurs: the same network on images of the same shape.
            lend: Gives the network.
            x: The images.
            targets: What the loss is of.
            scaled: The loss as its backward pass must see it.
        """
        known = self._recorder and self._recorder.loan_of(key)
        loan = known or lend(self.lender)
        self.lender.open(loan)
        if self._recorder and loan.sources and self._recorder.is_due(key):
            self.finish()

            def both(x: Tensor, targets: Tensor) -> Outputs:
                return self._pass(loan, x, targets, lambda loss: scaled(loss).backward())

            try:
                return self._recorder(key, loan, both, x, targets)
            except RuntimeError:  # what cannot be recorded here still runs
                self._recorder = None
                _end_capture(self._device)
        return self._pass(loan, x, targets, lambda loss: self._backward(scaled(loss)))

    def finish(self) -> None:
        """Wait for what is still being launched; before gradients are read."""
        for future in self._running:
            future.result()
        self._running.clear()

    def _pass(
        self, loan: Loan, x: Tensor, targets: Tensor, backward: Callable[[Tensor], object]
    ) -> Outputs:
        with self._recipe.autocast(self._device):
            output = loan.run(x)
        loss = self._loss(output, targets)
        backward(loss)
        return loss.detach(), output.detach()

    def _backward(self, loss: Tensor) -> None:
        if not (self._beside and BACKWARD_BESIDE):
            loss.backward()
            return
        stream, only = torch.cuda.current_stream(self._device), [loss]
        del loss  # the graph must be gone when the future is done: a recording meets no node

        def run() -> None:
            with torch.cuda.stream(stream):
                only.pop().backward()

        self._running.append(self._beside.submit(run))


@contextmanager
def training_stream(device: torch.device) -> Iterator[None]:
    """A stream of a GPU on which passes can be recorded, for all of a training."""
    if device.type == "cpu":
        yield
        return
    before, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    own.wait_stream(before)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        before.wait_stream(own)


def _end_capture(device: torch.device) -> None:
    """After a recording that failed: random numbers of the device can be drawn again."""
    fresh = torch.Generator(device)
    fresh.manual_seed(torch.initial_seed())
    torch.cuda.default_generators[device.index].graphsafe_set_state(fresh.graphsafe_get_state())


class _Recorder:
    """CUDA graphs of passes that recur, those that recurred last."""

    def __init__(self) -> None:
        self._occurrences = Counter[bytes]()
        self._graphs: dict[bytes, tuple[Loan, torch.cuda.CUDAGraph, Outputs]] = {}
        self._inputs: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def is_due(self, key: bytes) -> bool:
        """Whether a pass is recorded, or is to be now; only on a :func:`training_stream`."""
        self._occurrences[key] += 1
        is_own = torch.cuda.current_stream() != torch.cuda.default_stream()
        return is_own and self._occurrences[key] >= RECORD_AT

    def loan_of(self, key: bytes) -> Loan | None:
        """The network of a pass that is recorded."""
        return self._graphs[key][0] if key in self._graphs else None

    def __call__(
        self, key: bytes, loan: Loan, function: Callable[..., Outputs], *inputs: Tensor
    ) -> Outputs:
        """What ``function`` computes and does; it must always be the same for a key.

        Inputs are copied to where the graph reads them, outputs from where it leaves them.
        """
        places = [
            self._inputs.setdefault((i, x.shape, x.dtype), torch.empty_like(x))
            for i, x in enumerate(inputs)
        ]
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x)
        known = self._graphs.pop(key) if key in self._graphs else None
        found = self._graphs[key] = known or (loan, *self._recorded(function, places))
        if len(self._graphs) > MAX_RECORDED:
            del self._graphs[next(iter(self._graphs))]
        _, graph, outputs = found
        graph.replay()
        return tuple(output.clone() for output in outputs)

    def _recorded(
        self, function: Callable[..., Outputs], places: list[Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, Outputs]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream()):
            outputs = function(*places)
        return graph, outputs
