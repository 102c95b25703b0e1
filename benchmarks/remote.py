"""What does it cost that the device is elsewhere?

python benchmarks/remote.py overhead [--device NAME] [--sessions 12] [--json] [--quick]
python benchmarks/remote.py transfer [--space ofa-mbv3-w1.0]
python benchmarks/remote.py delay    [--seconds 0.1]
overhead  16 networks on this machine through ssh to it and through the device cpu, and through cpu
          once more, a session of each in turn; the ratio of the latencies is 1 but for noise, and
          cpu over cpu says how much that is.
transfer  bytes that a profile of a space sends.
delay     time that a profile takes through a link that delivers every byte later, over that
          through a quick one, three of each in turn.
The ssh server is started here, with keys of its own; --device names another way to this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from loopback import SlowWay, SshServer

from deploynas.device import LocalDevice, Samples, StopRule, measure, open_device
from deploynas.device.remote import RemoteDevice
from deploynas.graph import RandomWeights, write_model
from deploynas.profile import profile_space
from deploynas.spaces import StagedSpace, space

SESSION = StopRule(min_sessions=1, max_sessions=1, rounds=16)


def main() -> None:
    """Print one part's table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("overhead", "transfer", "delay"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few sessions")
    parser.add_argument("--device")
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--space", default="ofa-mbv3-w1.0")
    parser.add_argument("--seconds", type=float, default=0.1)
    options = parser.parse_args()
    if options.quick:
        options.sessions = 3
    with tempfile.TemporaryDirectory() as folder:
        server = None
        if options.device is None:
            server = SshServer(Path(folder))
            os.environ["PATH"] = f"{server.bin}:{os.environ['PATH']}"
            options.device = f"ssh:board {shlex.quote(sys.executable)}"
        try:
            if options.part == "overhead":
                document = overhead(options)
            elif options.part == "transfer":
                document = transfer(options)
            else:
                document = delay(options, server)
        finally:
            if server:
                server.stop()
    if options.json:
        print(json.dumps(document))
        return
    for key, value in document.items():
        print(f"{key:26} {value:.4f}" if isinstance(value, float) else f"{key:26} {value}")


def overhead(options: argparse.Namespace) -> dict[str, object]:
    """The same networks in two ways, and one of them twice."""
    devices = {"cpu": LocalDevice(), "remote": open_device(options.device), "again": LocalDevice()}
    chosen = space("mobile-small", 10, 3, [32])
    archs = chosen.sample_spread(16, np.random.default_rng(50_001))
    samples: dict[str, dict[str, Samples]] = {name: {} for name in devices}
    with tempfile.TemporaryDirectory() as folder:
        models = {
            str(i): write_model(Path(folder) / f"{i}.onnx", chosen.layers(a), RandomWeights(i))
            for i, a in enumerate(archs)
        }
        for number in range(1, options.sessions + 1):
            rule = replace(SESSION, min_sessions=number, max_sessions=number)
            names = np.random.default_rng(number).permutation(list(devices))
            for name in names:
                measure(devices[name], models, rule, samples=samples[name])
            print(f"session {number} of {options.sessions}", file=sys.stderr)
    medians = {
        name: np.array([one.estimate(one.level).median for one in found.values()])
        for name, found in samples.items()
    }
    document: dict[str, object] = {"networks": len(models), "sessions": options.sessions}
    for name in ("remote", "again"):
        ratios = medians[name] / medians["cpu"]
        title = {"remote": "remote_over_cpu", "again": "cpu_over_cpu"}[name]
        document[title] = float(np.median(ratios))
        document[f"{title}_worst"] = float(ratios[np.abs(ratios - 1).argmax()])
    return document


def transfer(options: argparse.Namespace) -> dict[str, object]:
    """A whole profile with as little measuring as there can be: what is sent is the same."""
    device = open_device(options.device)
    assert isinstance(device, RemoteDevice)
    chosen = space(options.space)
    assert isinstance(chosen, StagedSpace)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        profile, _ = profile_space(
            chosen, device, Path(folder) / "p.json", budget_minutes=0.001, soft_seconds=0.0,
            on_progress=lambda text, share: None,
        )  # fmt: skip
    return {
        "space": chosen.name,
        "layers": len(profile.layers),
        "networks": sum(map(len, profile.networks.values())),
        "megabytes_sent": device.bytes_sent / 1e6,
        "seconds": time.monotonic() - started,
    }


def delay(options: argparse.Namespace, server: SshServer | None) -> dict[str, object]:
    """The same profile near and far: wall time, with the least sessions that the rule asks for."""
    if server is None:
        raise SystemExit("--device and delay do not go together")
    chosen = space("mobile-small", 10, 3, [32])
    slow = SlowWay(server.port, options.seconds)
    seconds: dict[str, list[float]] = {"near": [], "far": []}
    for number in range(1 if options.quick else 3):
        for name, port in (("near", server.port), ("far", slow.port)):
            server.use_key("client", port)
            device = open_device(options.device)
            with tempfile.TemporaryDirectory() as folder:
                started = time.monotonic()
                profile_space(chosen, device, Path(folder) / "p.json", soft_seconds=0.0)
                seconds[name].append(time.monotonic() - started)
            print(f"{number + 1}: {name} {seconds[name][-1]:.1f} s", file=sys.stderr)
    near, far = (float(np.median(seconds[name])) for name in ("near", "far"))
    return {
        "delay_each_way_seconds": options.seconds,
        "profile_near_seconds": near,
        "profile_far_seconds": far,
        "far_over_near": far / near,
    }


if __name__ == "__main__":
    main()
