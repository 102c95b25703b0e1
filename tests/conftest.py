"""What several tests share: the published weights, and the profile of a board elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploynas.artifacts import DIGEST, digest
from deploynas.check import regression, verdict
from deploynas.check.model_file import costs_of
from deploynas.device import Level, LocalDevice, Samples
from deploynas.device.base import Notes
from deploynas.onboard.timing import Round
from deploynas.profile import DeviceProfile, profiler, refresh, validate
from deploynas.profile.device_profile import layer_key
from deploynas.profile.profiler import calibration_archs, with_networks
from deploynas.spaces import layers as layer_costs

_ROOT = Path(__file__).parents[1]
SIDE = 64  # small: weights and wiring do not depend on it


@pytest.fixture(autouse=True)
def own_settings(monkeypatch, tmp_path):
    """The user's own names of devices stay as they are."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def small_table(tmp_path):
    """The file of a space of one stage at 16 px, of as many networks as there are depths."""

    def written(depths):
        path = tmp_path / "small.toml"
        path.write_text(
            'operator = "mbconv"\nkernel_sizes = [3]\nexpand_ratios = [2]\nactivation = "relu"\n'
            "resolutions = [16]\n[stem]\nwidth = 8\n[first]\nwidth = 8\n"
            f"[[stages]]\nwidth = 8\nstride = 2\ndepths = {depths}\n"
            "[head]\nwidth = 16\nfeatures = 0\n"
        )
        return path

    return written


@pytest.fixture(scope="session")
def signed():
    """Text of an artefact's document that was edited by somebody who knows the digest."""
    return lambda document: json.dumps(document | {DIGEST: digest(document)})


@pytest.fixture
def short_sessions(monkeypatch):
    """Real measurements of seconds instead of a minute, where differences are far above noise."""
    short = {"min_sessions": 2, "max_sessions": 2, "rounds": 4, "session_seconds": 0.0}
    for module, name in (
        (verdict, "RULE"), (validate, "RULE"), (refresh, "RULE"), (profiler, "LAYER_RULE"),
        (profiler, "NETWORK_RULE"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, replace(getattr(module, name), **short))
    monkeypatch.setattr(regression, "SESSION", replace(regression.SESSION, rounds=4))


@pytest.fixture(scope="session")
def published_supernet():
    """Name of a space -> the package's supernet, with random weights and statistics."""
    networks = pytest.importorskip("ofa.imagenet_classification.elastic_nn.networks")
    import torch
    from torch import nn

    def build(name):
        width = float(name.rpartition("-w")[2])
        kind = networks.OFAProxylessNASNets if "proxyless" in name else networks.OFAMobileNetV3
        torch.manual_seed(0)
        net = kind(
            dropout_rate=0.0, width_mult=width, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6],
            depth_list=[2, 3, 4],
        )  # fmt: skip
        generator = torch.Generator().manual_seed(1)
        norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
        net.set_max_net()
        net.train()
        with torch.no_grad():
            for norm in norms:
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.normal_(0.0, 0.2, generator=generator)
                norm.momentum = None  # statistics of the images, so that the signal survives
            net(torch.randn(16, 3, SIDE, SIDE, generator=generator))
            for norm in norms:
                norm.running_var *= 0.7 + torch.rand(norm.running_var.shape, generator=generator)
            net.classifier.linear.weight *= 20  # logits of a size that trained networks have
            for key, tensor in net.named_parameters():
                if key.endswith("_matrix"):
                    tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
        return net.eval()

    return build


@pytest.fixture(scope="session")
def published_weights(published_supernet, tmp_path_factory):
    """A checkpoint file of ofa-mbv3-w1.0 as it is published."""
    import torch

    path = tmp_path_factory.mktemp("weights") / "published.pth"
    torch.save({"state_dict": published_supernet("ofa-mbv3-w1.0").state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def board_profile():
    """Space -> the profile of a board elsewhere, on which time is proportional to MACs.

    Searching needs a whole profile, and measuring one of a published space takes minutes.
    """

    def build(space):
        identity = LocalDevice().identity.model_copy(update={"processor": "a board elsewhere"})

        def samples(macs):
            touches = [[0.001 + float(macs) / 1e7] * 3] * 2
            return Samples(1000, touches, [[1.0] * 3] * 2, [[1.0] * 3] * 2)

        profile = DeviceProfile.model_validate(
            {
                "identity": identity,
                "level": {"core_ms": 1.0, "memory_ms": 1.0},
                "layers": {
                    layer_key(layer, "fp32"): {
                        "macs": layer_costs.macs(layer),
                        "params": layer_costs.params(layer),
                        "counted_by": "deploynas",
                        "samples": vars(samples(layer_costs.macs(layer))),
                    }
                    for layer in space.layer_table
                },
            }
        )
        archs = calibration_archs(space, profile)
        measured = [samples(macs) for macs in space.macs(archs)]
        return with_networks(profile, space, np.asarray(archs), measured)

    return build


class Board:
    """The device of :func:`board_profile` in a mood: it takes longer by a factor.

    A stand-in, as no real machine can be made to drift by so much and not by more.
    """

    def __init__(self, identity, factor):
        self.identity, self.notes, self.factor, self.asked = identity, Notes(), factor, []

    def rounds(self, models, rule, samples, seed):
        self.asked.append(len(models))
        times = {
            name: (0.001 + sum(node.macs for node in costs_of(path)) / 1e7) * self.factor
            for name, path in models.items()
        }
        for number in range(rule.min_sessions):
            touches = {name: (ms, Level(1.0, 1.0)) for name, ms in times.items()}
            for name, touch in touches.items():
                samples[name].add(True, *touch)
            yield Round(0, touches, (number + 1) / rule.min_sessions, 0.0)


@pytest.fixture(scope="session")
def board():
    """Identity, factor -> a :class:`Board`."""
    return Board


SOURCES = ("pyproject.toml", "README.md", "LICENSE", "deploynas", "profiles")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Built as `make wheel` does, from a copy: the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        if (_ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.journal")
            shutil.copytree(_ROOT / name, folder / "source" / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(_ROOT / name, folder / "source" / name)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", folder / "dist", folder / "source"],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (path,) = (folder / "dist").iterdir()
    return path
