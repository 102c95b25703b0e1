"""Every runtime that ships, by the conformance suite; and what is said of a bad one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploynas.device import open_device
from deploynas.device.local import converted
from deploynas.errors import (
    DeploynasError,
    InvalidInputError,
    MissingDependencyError,
    UnknownNameError,
)
from deploynas.runtimes import RUNTIMES, by_device, that_travels
from deploynas.testing import check_runtime

pytestmark = pytest.mark.slow

OTHERS = ["web", "web-chromium", "ncnn", "openvino"]


@pytest.mark.parametrize(
    "name", ["cpu", "litert", *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)]
)
def test_conformance(name):
    try:
        check_runtime(name)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def test_every_device_is_tested():
    assert set(by_device()) == {"cpu", "litert", *OTHERS}


def test_a_device_of_this_machine_has_its_own_runtime():
    with pytest.raises(InvalidInputError, match="runs onnxruntime, not onnxruntime-web"):
        open_device("cpu", runtime="onnxruntime-web")
    with pytest.raises(InvalidInputError, match="on this machine alone"):
        open_device(f"exec:{sys.executable}", runtime="onnxruntime-web")
    with pytest.raises(UnknownNameError, match="unknown runtime 'onnxruntim'"):
        open_device(f"exec:{sys.executable}", runtime="onnxruntim")


def test_networks_of_one_name_are_two(tmp_path):
    class Copies(type(RUNTIMES.load("onnxruntime"))):
        def convert(self, model, folder):
            return Path(shutil.copy(model, folder))

    models = {name: tmp_path / name / "model.onnx" for name in ("before", "after")}
    for name, path in models.items():
        path.parent.mkdir()
        path.write_text(name)
    folder = tmp_path / "converted"
    folder.mkdir()
    ready = converted(Copies(), models, folder)
    assert {name: path.read_text() for name, path in ready.items()} == {
        "before": "before", "after": "after",
    }  # fmt: skip


def test_what_travels():
    assert that_travels("onnxruntime") is RUNTIMES.load("onnxruntime")
    with pytest.raises(DeploynasError):
        RUNTIMES.load("onnxruntime-web").launcher("web", 2, None)


def test_a_package_that_is_too_old_says_what_to_type(monkeypatch):
    """Where it is opened, and where it is installed: pip gets a newer one."""
    litert = RUNTIMES.load("litert")
    monkeypatch.setattr(type(litert), "version", lambda self: "1.4.0")
    with pytest.raises(
        MissingDependencyError,
        match=r"needs ai-edge-litert 2.0, and 1.4.0 is here .type: deploynas devices install lite",
    ):
        open_device("litert")
    typed = []

    def pip(command, **options):
        typed.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    assert litert.install() == (Path(sys.prefix), True)
    assert typed[0][-1] == "ai-edge-litert>=2.0"
    with pytest.raises(ValueError, match="its ai-edge-litert is 1.4.0, and 2.0 is needed"):
        litert.facts(None, 1)
