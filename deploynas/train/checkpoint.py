"""Weights and training state as safetensors, written atomically; no pickle anywhere.

The metadata hold a digest of all else: a flipped bit, a tensor that is gone and another step are
found. Weights of others have none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from deploynas.artifacts import DIGEST, open_atomic
from deploynas.errors import InvalidInputError, MissingFileError, one_line
from deploynas.nn.state import digest, misfits, require_finite


class State(Protocol):
    """What a training keeps beside weights and optimizer."""

    def state(self) -> dict[str, Tensor]:
        """All of it."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what :meth:`state` gave."""
        ...


class Together:
    """Several of them, each under a name of its own."""

    def __init__(self, states: Mapping[str, State]) -> None:
        self._states = states

    def state(self) -> dict[str, Tensor]:
        """See :class:`State`."""
        return {
            f"{name}.{key}": tensor
            for name, one in self._states.items()
            for key, tensor in one.state().items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """See :class:`State`."""
        for name, one in self._states.items():
            one.restore(_part(state, f"{name}."))


def weights_of(module: nn.Module) -> bytes:
    """A module's state as a file."""
    return _file_of(dict(module.state_dict()), {})


def save_weights(path: Path, module: nn.Module) -> Path:
    """Write a module's state."""
    with open_atomic(path) as file:
        file.write(weights_of(module))
    return path


def load_weights(path: Path, module: nn.Module) -> None:
    """Read a module's state.

    Raises:
        MissingFileError: No such file.
        InvalidInputError: Not safetensors, or tensors are missing, superfluous or mis-shaped
            (the first three are named), or hold NaN, or are not what was written.
    """
    if not path.exists():
        raise MissingFileError(f"{path} does not exist")
    try:
        state, metadata = _read(path)
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(
            f"{path} is truncated or not a safetensors file: {one_line(error)}"
        ) from None
    expected = module.state_dict()
    wrong = misfits(expected, state)
    if wrong:
        raise InvalidInputError(f"{path} does not fit the network: {', '.join(wrong[:3])}")
    require_finite(state, path)
    if DIGEST in metadata and metadata[DIGEST] != _digest(state, metadata):
        raise InvalidInputError(f"{path} was edited or damaged: it is not what deploynas wrote")
    module.load_state_dict(state)


def save_checkpoint(
    path: Path, identity: str, step: int, module: nn.Module, optimizer: torch.optim.Optimizer,
    beside: State | None = None,
) -> None:  # fmt: skip
    """Write weights, optimizer state, step and what is ``beside``: all that resuming needs."""
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    if beside is not None:
        tensors |= {f"beside.{k}": v for k, v in beside.state().items()}
    with open_atomic(path) as file:
        file.write(_file_of(tensors, {"identity": identity, "step": str(step)}))


def load_checkpoint(
    path: Path, identity: str, module: nn.Module, optimizer: torch.optim.Optimizer,
    beside: State | None = None,
) -> int:  # fmt: skip
    """Restore what :func:`save_checkpoint` wrote; returns the step, 0 where there is no file.

    Raises:
        InvalidInputError: The file is damaged, or was written with other data, space or recipe.
    """
    if not path.exists():
        return 0
    try:
        tensors, metadata = _read(path)
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(
            f"{path} is damaged: {one_line(error)}", f"delete {path}"
        ) from None
    if metadata.get(DIGEST) != _digest(tensors, metadata):
        raise InvalidInputError(
            f"{path} was edited or damaged: it is not what this deploynas wrote",
            f"delete {path} to start anew",
        )
    if metadata.get("identity") != identity:
        raise InvalidInputError(
            f"{path} belongs to another data set, space, recipe or start",
            f"delete {path} to start anew",
        )
    try:
        module.load_state_dict(_part(tensors, "model."))
    except RuntimeError:
        raise InvalidInputError(
            f"{path} does not fit the network", f"delete {path} to start anew"
        ) from None
    state = optimizer.state_dict()
    restored: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        restored.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": restored, "param_groups": state["param_groups"]})
    if beside is not None:
        beside.restore(_part(tensors, "beside."))
    return int(metadata["step"])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all tensors, and of the other metadata."""
    others = sorted((k, v) for k, v in metadata.items() if k != DIGEST)
    return hashlib.sha256(f"{digest(tensors)} {others}".encode()).hexdigest()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _file_of(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    return save(plain, metadata | {DIGEST: _digest(plain, metadata)})
