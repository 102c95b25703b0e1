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
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deploynas.contents import head, require_own
from deploynas.errors import InvalidInputError
from deploynas.nn.state import misfits, require_finite

_PLACES = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "module.")
_PARTS = {"inverted_bottleneck": "expand", "depth_conv": "depthwise", "point_linear": "project"}
_UNWRAPPED = ((".mobile_inverted_conv.", ".conv."), (".bn.bn.", ".bn."),
              (".conv.conv.", ".conv."), (".linear.linear.", ".linear."))  # fmt: skip


def load_published(path: Path, module: nn.Module, prefix: str, num_layers: int) -> None:
    """Read a published checkpoint into ``module``.

    Args:
        path: A ``.pth`` or safetensors file; see :func:`read_state`.
        module: Takes the tensors; replaced only when all of them fit.
        prefix: Of the names of a layer's tensors, with ``{}`` for its number.
        num_layers: Layers of the module, stem and head included.

    Raises:
        MissingFileError: No such file.
        InvalidInputError: Not a checkpoint of tensors, or tensors are missing, superfluous or
            mis-shaped (the first three are named), or hold NaN.
    """
    published = {_unwrapped(k): v for k, v in read_state(path).items() if "num_batches" not in k}
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


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint, in single precision, under the names of the network itself.

    A ``.pth`` or safetensors file, told by its content: a state dict, or one under any of
    :data:`_PLACES`, the averaged one first; ``module.`` before every name is what data-parallel
    training leaves.
    """
    require_own(path, "a checkpoint")
    document = _tensors(path)
    for place in _PLACES:
        if isinstance(document, dict) and isinstance(document.get(place), dict):
            document = document[place]
            break
    is_state = isinstance(document, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in document.items()
    )
    if not is_state or not document:
        raise InvalidInputError(
            f"{path} is not a checkpoint of tensors",
            f"it needs a state dict, or one under {', '.join(_PLACES)}",
        )
    state = dict(document)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _tensors(path: Path) -> Any:
    """What a file holds; no code of it is run."""
    if head(path)[8:9] == b"{":
        try:
            return load_file(path)
        except (SafetensorError, OSError):
            raise InvalidInputError(f"{path} is a safetensors file, cut off or damaged") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        reason = "it is cut off, damaged, or holds Python objects, which are never loaded"
    except Exception:  # whatever bytes that are none make the reader raise
        reason = "it is cut off, damaged, or something else"
    raise InvalidInputError(
        f"{path} is not a checkpoint of tensors: {reason}",
        "save its state_dict() alone, as safetensors or .pth",
    )


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
