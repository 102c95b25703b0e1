"""Data-parallel training under ``torchrun``.

Each process takes its part of every batch. All draw the same subnets, for every draw follows
from the seed and the step; batch norms see the whole batch, gradients are averaged, and only the
first process writes. So a step computes what one process would compute with the same batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist
from torch import nn

from deploynas.nn.norm import is_distributed


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes where ``torchrun`` started this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def place() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def is_first() -> bool:
    """Whether this process writes files and talks to the user."""
    return place()[0] == 0


def average_gradients(module: nn.Module) -> None:
    """Replace every gradient by its mean over the processes."""
    if not is_distributed():
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
    start = 0
    for gradient in gradients:
        end = start + gradient.numel()
        gradient.copy_(flat[start:end].view_as(gradient))
        start = end


def average(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def mean_over_processes(value: float) -> float:
    """The mean of a number over the processes."""
    if not is_distributed():
        return value
    total = torch.tensor([value], dtype=torch.float64)
    return float(average(total.cuda() if torch.cuda.is_available() else total))


def wait() -> None:
    """Until every process has come so far."""
    if is_distributed():
        dist.barrier()
