"""Data-parallel training under ``torchrun``.

Each process takes its part of every batch. All draw the same subnets and paths, for every draw
follows from the seed and the step; batch norms see the whole batch, gradients are averaged, and
only the first process writes and talks. So a step computes what one process would compute with
the same batch, but for images that are mixed (mixup, CutMix), each with one of its own part. What
does not share its work refuses to be started like that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist
from torch import nn

from deploynas.errors import DeploynasError, InvalidInputError
from deploynas.nn.norm import is_distributed

PATIENCE = timedelta(hours=12)  # the others wait while the first one completes a profile


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes where ``torchrun`` started this one, and leave them at the end.

    What a user can cause, all processes meet. Only the first one raises it, and the others end as
    if all were well: when one fails, ``torchrun`` ends the rest, the first before it has spoken.
    """
    if _started()[1] < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    except DeploynasError:
        if is_first():
            raise
        raise SystemExit(0) from None
    finally:
        dist.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[bool]:
    """A block that the first process goes through before the others, which find what it left.

    Yields whether this is the first process. Where the first one fails, the others end.
    """
    if not is_distributed():
        yield True
        return
    if not is_first():
        if mean_over_processes(1.0) < 1:
            raise SystemExit(0)
        yield False
        return
    succeeded = 0.0
    try:
        yield True
        succeeded = 1.0
    finally:
        mean_over_processes(succeeded)


def require_one_process(what: str) -> None:
    """Refuse to be one of several processes, each of which would do the whole work.

    The first process says so; the others end.

    Raises:
        InvalidInputError: ``torchrun`` started several.
    """
    rank, count = _started()
    if count < 2:
        return
    if rank:
        raise SystemExit(0)
    raise InvalidInputError(
        f"{what} is not shared by the {count} processes that torchrun started",
        "start it without torchrun; train, and search --strategy proxyless or darts, share theirs",
    )


def _started() -> tuple[int, int]:
    """This process's number and how many there are, as ``torchrun`` says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def place() -> tuple[int, int]:
    """This process's number and how many work together now."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def is_first() -> bool:
    """Whether this process writes files and talks to the user, in a group or not."""
    rank, count = _started() if not is_distributed() else place()
    return count < 2 or rank == 0


def average_gradients(module: nn.Module) -> None:
    """Replace every gradient by its mean over the processes."""
    if not is_distributed():
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    for gradient, mean in zip(gradients, averages(gradients), strict=True):
        gradient.copy_(mean)


def averages(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The means of tensors over the processes, asked for at once."""
    if not is_distributed() or not tensors:
        return tensors
    flat = average(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def average(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def share_of_mean(num_images: int) -> float:
    """Factor of a mean over this process's images.

    The mean over the processes is then that over all images, where one process has more of them
    than another.
    """
    return num_images / mean_over_processes(num_images)


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
