"""Checkpoints as people have them: wrapped, prefixed, halved, in either file format, or none."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.nn.ofa_weights import read_state

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)}


@pytest.mark.parametrize(
    "document",
    [
        STATE,
        {"state_dict": STATE},
        {"model": STATE, "epoch": 3, "optimizer": {"lr": 0.1}},
        {"state_dict": {"a.weight": torch.zeros(1)}, "state_dict_ema": STATE},
        {"state_dict": {f"module.{k}": v for k, v in STATE.items()}},
        {f"_orig_mod.module.{k}": v for k, v in STATE.items()},
        {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()},
        {k: v.bfloat16() if v.is_floating_point() else v for k, v in STATE.items()},
    ],
)
def test_wrapped_prefixed_or_halved(document, tmp_path):
    torch.save(document, tmp_path / "w.pth")
    found = read_state(tmp_path / "w.pth")
    assert found.keys() == STATE.keys()
    assert found["a.weight"].dtype == torch.float32
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_safetensors_whatever_the_name(tmp_path):
    save_file({f"module.{k}": v for k, v in STATE.items()}, tmp_path / "w.pth")
    assert torch.equal(read_state(tmp_path / "w.pth")["a.weight"], STATE["a.weight"])
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[:-5])
    with pytest.raises(InvalidInputError, match="safetensors file, cut off or damaged"):
        read_state(tmp_path / "w.pth")


class Anything:
    """An object that a pickle may hold."""


def test_files_that_are_none(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(MissingFileError):
        read_state(path)
    torch.save(STATE, path)
    whole = path.read_bytes()
    torch.save({"model": Anything()}, path)
    contents = {
        "which are never loaded": path.read_bytes(),
        "cut off": whole[: len(whole) // 2],
        "is empty": b"",
        "a Git LFS pointer.*git lfs pull": b"version https://git-lfs.github.com/spec/v1\n",
        "a web page": b"<!doctype html>",
        "or something else|never loaded": b"\x80\x02}q\x00(X\xff",
    }
    for said, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=said) as caught:
            read_state(path)
        assert "weights_only" not in str(caught.value)
        assert "\n" not in str(caught.value)
    for document in ([1, 2], {"state_dict": {"a": 3}}, {}, {1: torch.zeros(1)}):
        torch.save(document, path)
        with pytest.raises(InvalidInputError, match="needs a state dict"):
            read_state(path)
