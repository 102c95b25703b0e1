"""Where a network that is adapted comes from: a function in a file, torchvision, timm."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploynas.errors import (
    InvalidInputError,
    MissingDependencyError,
    MissingFileError,
    UnknownNameError,
)
from deploynas.nn.adapt.answers import answered, first_line
from deploynas.nn.ofa_weights import read_state


def load_module(spec: str, weights: Path | None = None) -> nn.Module:
    """A network by its name.

    Args:
        spec: ``file.py:function`` of a function without arguments that returns a module;
            ``torchvision:NAME`` or ``timm:NAME``. The file is code, and runs.
        weights: A checkpoint under the library's own names; random weights where None.

    Raises:
        InvalidInputError: It names no network, or the weights are of another one.
        MissingFileError, MissingDependencyError, UnknownNameError: See their classes.
    """
    kind, colon, name = spec.rpartition(":")
    if not colon or not name:
        raise InvalidInputError(
            f"{spec!r} names no network",
            "write file.py:function, torchvision:mobilenet_v2 or timm:efficientnet_lite0",
        )
    if kind in _LIBRARIES:
        torch.manual_seed(0)  # random weights are the same every time
        module = _LIBRARIES[kind](name)
    elif kind.endswith(".py"):
        module = _of_function(Path(kind), name)
    else:
        raise InvalidInputError(
            f"{kind!r} is neither a .py file nor one of {', '.join(_LIBRARIES)}"
        )
    if weights is not None:
        _load(module, weights, spec)
    return module


def with_classes(module: nn.Module, example: Tensor, num_classes: int) -> bool:
    """Give a network a new last layer where it tells another number of classes apart.

    Args:
        module: Changed in place.
        example: Its input.
        num_classes: That it should answer.

    Returns:
        Whether it was changed.

    Raises:
        InvalidInputError: It is no classifier, or its answer comes of no linear layer or
            convolution.
    """
    run: list[tuple[str, nn.Module]] = []
    hooks = [
        one.register_forward_hook(lambda m, i, o, name=name: run.append((name, m)))
        for name, one in module.named_modules()
        if isinstance(one, (nn.Linear, nn.Conv2d))
    ]
    try:
        with torch.no_grad():
            outputs = answered(module.eval(), example)
    finally:
        for hook in hooks:
            hook.remove()
    if outputs[0].dim() != 2:
        raise InvalidInputError(
            f"the network answers {list(outputs[0].shape)} to one image, which is no classifier",
            "networks that give a number a class are adapted",
        )
    found = int(outputs[0].shape[-1])
    if found == num_classes:
        return False
    torch.manual_seed(0)
    for name, last in reversed(run):
        if isinstance(last, nn.Linear) and last.out_features == found:
            new: nn.Module = nn.Linear(last.in_features, num_classes, last.bias is not None)
        elif isinstance(last, nn.Conv2d) and last.out_channels == found and last.groups == 1:
            new = nn.Conv2d(
                last.in_channels, num_classes, last.kernel_size, last.stride,  # type: ignore[arg-type]
                last.padding, bias=last.bias is not None,  # type: ignore[arg-type]
            )  # fmt: skip
        else:
            continue
        module.set_submodule(name, new)
        return True
    raise InvalidInputError(
        f"the network tells {found} classes apart, the data has {num_classes}, and no layer of "
        "its own makes its answer",
        "return one with a head for the data",
    )


def _of_function(path: Path, name: str) -> nn.Module:
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    namespace = importlib.util.module_from_spec(found)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # what lies beside it can be imported, as when it is run
    try:
        found.loader.exec_module(namespace)
        function = getattr(namespace, name, None)
        if not callable(function):
            known = [n for n, x in vars(namespace).items() if inspect.isfunction(x)]
            raise UnknownNameError(f"function of {path}", name, known)
        needed = _needed(function)
        if needed:
            raise InvalidInputError(
                f"{path}:{name} needs {', '.join(needed)}",
                "write one without arguments that returns the network, its weights loaded",
            )
        module = function()
    except (InvalidInputError, UnknownNameError):
        raise
    except (Exception, SystemExit) as error:  # whatever somebody's code raises
        raise InvalidInputError(
            f"{path}:{name} ends in {type(error).__name__}: {first_line(error)}"
        ) from None
    finally:
        sys.path.remove(folder)
    if not isinstance(module, nn.Module):
        raise InvalidInputError(
            f"{path}:{name} returns {type(module).__name__}, and a torch.nn.Module is needed"
        )
    return module


def _needed(function: Callable[..., Any]) -> list[str]:
    """Names of arguments that have to be given."""
    return [
        one.name
        for one in inspect.signature(function).parameters.values()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]


def _torchvision(name: str) -> nn.Module:
    import torchvision

    # classifiers alone: others would fetch the weights of their backbones
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UnknownNameError("network of torchvision", name, known)
    module: nn.Module = torchvision.models.get_model(name, weights=None)
    return module


def _timm(name: str) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise MissingDependencyError(
            "networks of timm need timm, which is not here", "type: pip install timm"
        ) from None
    known = timm.list_models()
    if name not in known:
        raise UnknownNameError("network of timm", name, known)
    module: nn.Module = timm.create_model(name, pretrained=False)
    return module


_LIBRARIES: dict[str, Callable[[str], nn.Module]] = {
    "torchvision": _torchvision, "timm": _timm,
}  # fmt: skip


def _load(module: nn.Module, weights: Path, spec: str) -> None:
    state = read_state(weights)
    own = module.state_dict()
    # some libraries leave out what batch norms count
    lacking = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in own]
    other = [n for n in own if n in state and own[n].shape != state[n].shape]
    for what, names in (("lack", lacking), ("have an unknown", unknown), ("have another", other)):
        if names:
            raise InvalidInputError(
                f"the weights in {weights} are not of {spec}: they {what} {names[0]}"
                f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}",
                "--weights are in the library's own names; other ones come through "
                "file.py:function",
            )
    module.load_state_dict(dict(state), strict=False)
