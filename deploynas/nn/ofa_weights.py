"""Weights of the once-for-all repository (Cai et al. 2020) -> our modules.

A checkpoint names its tensors after the repository's modules; some generations wrap layers once
more (``conv.conv``, ``bn.bn``, ``mobile_inverted_conv``). Slot ``i`` of a supernet, or layer ``i``
of a static network, takes the tensors of one of its layers.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.nn.state import misfits, require_finite

_PARTS = {"inverted_bottleneck": "expand", "depth_conv": "depthwise", "point_linear": "project"}
_UNWRAPPED = ((".mobile_inverted_conv.", ".conv."), (".bn.bn.", ".bn."),
              (".conv.conv.", ".conv."), (".linear.linear.", ".linear."))  # fmt: skip


def load_published(path: Path, module: nn.Module, prefix: str, num_layers: int) -> None:
    """Read a published checkpoint into ``module``.

    Args:
        path: A ``.pth`` file: a state dict, or one under ``state_dict``.
        module: Takes the tensors; replaced only when all of them fit.
        prefix: Of the names of a layer's tensors, with ``{}`` for its number.
        num_layers: Layers of the module, stem and head included.

    Raises:
        MissingFileError: No such file.
        InvalidInputError: Not a checkpoint of tensors, or tensors are missing, superfluous or
            mis-shaped (the first three are named), or hold NaN.
    """
    published = {_unwrapped(k): v for k, v in _read(path).items() if "num_batches" not in k}
    last = prefix.format(num_layers - 1)
    ends = {"first_conv.": prefix.format(0), "classifier.linear.": f"{last}classifier."}
    if any(name.startswith("final_expand_layer.") for name in published):
        ends["final_expand_layer."] = f"{last}expand."
        ends["feature_mix_layer.conv."] = f"{last}features."
    else:
        ends["feature_mix_layer."] = f"{last}expand."
    state = {_our_name(name, prefix, ends): tensor for name, tensor in published.items()}
    expected = {k: v for k, v in module.state_dict().items() if "num_batches_tracked" not in k}
    wrong = misfits(expected, state)
    if wrong:
        raise InvalidInputError(
            f"{path} holds weights of another network: {len(wrong)} tensors do not fit, such as "
            f"{', '.join(wrong[:3])}"
        )
    require_finite(state, path)
    module.load_state_dict(state, strict=False)


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InvalidInputError(f"{path} is not a checkpoint of tensors: {reason}") from None
    state = document.get("state_dict", document) if isinstance(document, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InvalidInputError(f"{path} is not a checkpoint of tensors")
    return state


def _unwrapped(name: str) -> str:
    for old, new in _UNWRAPPED:
        name = name.replace(old, new)
    return name


def _our_name(name: str, prefix: str, ends: Mapping[str, str]) -> str:
    """Our name of a published tensor; an unknown name stays as it is."""
    for theirs, ours in ends.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    block = re.fullmatch(r"blocks\.(\d+)\.conv\.(\w+?)\.(.+)", name)
    if block is None or block[2] not in _PARTS:
        return name
    layer, rest = prefix.format(int(block[1]) + 1), block[3]
    if matrix := re.fullmatch(r"conv\.(\d+to\d+)_matrix", rest):
        return f"{layer.removesuffix('full.')}kernel_{matrix[1]}"
    if rest.startswith("se.fc."):
        return f"{layer}se.{rest.removeprefix('se.fc.')}"
    return f"{layer}{_PARTS[block[2]]}.{rest}"
