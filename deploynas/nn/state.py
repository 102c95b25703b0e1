"""Does a state dict fit a module? One check for our own files and for published ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from deploynas.errors import InvalidInputError


def misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are missing, superfluous or mis-shaped in ``state``, sorted."""
    common = expected.keys() & state.keys()
    reshaped = {name for name in common if expected[name].shape != state[name].shape}
    return sorted((expected.keys() ^ state.keys()) | reshaped)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of named tensors: of their values, types and shapes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous()
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def require_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN and infinity.

    Raises:
        InvalidInputError: A tensor of the file at ``path`` holds one.
    """
    if any(not torch.isfinite(tensor).all() for tensor in state.values()):
        raise InvalidInputError(f"{path} holds NaN or infinity")
