"""How well a measurement repeats: the same networks in two fresh processes, minutes apart.

python benchmarks/repeatability.py [--json] [--quick] [--space S] [--resolution R] [--threads N]
                                   [--gap-seconds 120] [--sessions 12]
Each pass is a process of its own. Beside the engine, in the same pass: today's practice, the
networks timed one after another (median of 50 runs each).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import deploynas as dn
from deploynas.device import LocalDevice, Samples, StopRule, measure
from deploynas.graph import RandomWeights, write_model
from deploynas.onboard.timing import typical_level

SEED = 30_001


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="6 networks, 3 sessions, no gap")
    parser.add_argument("--space", default="ofa-mbv3-w1.0")
    parser.add_argument("--resolution", default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gap-seconds", type=float, default=120.0)
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--one-pass", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.sessions, options.gap_seconds = 3, 0.0
    if options.one_pass:
        options.one_pass.write_text(json.dumps(one_pass(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        passes = []
        for name in ("first", "second"):
            if passes:
                time.sleep(options.gap_seconds)
            path = Path(folder) / f"{name}.json"
            subprocess.run([sys.executable, *sys.argv, "--one-pass", str(path)], check=True)
            passes.append(json.loads(path.read_text()))
    print_table(options, *passes)


def one_pass(options: argparse.Namespace) -> dict[str, object]:
    """Measure the networks both ways."""
    sides = [options.resolution] if options.resolution else None
    space = dn.space(options.space, resolutions=sides)
    archs = space.sample(6 if options.quick else 16, np.random.default_rng(SEED))
    device = LocalDevice("cpu", options.threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for i, arch in enumerate(archs):
            path = Path(folder) / f"{i}.onnx"
            paths[str(i)] = write_model(path, space.layers(arch), RandomWeights(i))
        alone = []
        for path in paths.values():
            with device.opened([path]) as worker:
                alone.append(float(np.median(worker.time([(0, 50)])[0])))
        rule = StopRule(
            precision=0.0, min_sessions=options.sessions, max_sessions=options.sessions
        )
        start = time.monotonic()
        samples = measure(device, paths, rule, seed=time.time_ns() % 2**32)
        seconds = time.monotonic() - start
    return {
        "alone": alone,
        "seconds": seconds,
        "samples": [vars(samples[str(i)]) for i in range(len(archs))],
    }


def print_table(
    options: argparse.Namespace, first: dict[str, list], second: dict[str, list]
) -> None:
    """Differences between the passes; the engine's at the first pass's level of the machine."""
    one, two = ([Samples(**s) for s in p["samples"]] for p in (first, second))
    level = typical_level(one)
    document: dict[str, object] = {
        "space": options.space,
        "networks": len(one),
        "sessions": options.sessions,
        "seconds_per_network": (first["seconds"] + second["seconds"]) / 2 / len(one),
    }
    ways = {
        "engine": [[s.estimate(level).median for s in p] for p in (one, two)],
        "engine_raw": [[s.estimate().median for s in p] for p in (one, two)],
        "one_after_another": [first["alone"], second["alone"]],
    }
    for name, (a, b) in ways.items():
        difference = np.array(b) / np.array(a) - 1
        document[name] = {
            "mean": float(np.abs(difference).mean()),
            "worst": float(np.abs(difference).max()),
            "common": float(difference.mean()),
            "scatter": float(difference.std()),
        }
    widths = [s.estimate(level).half_width for s in one + two]
    document["stated_half_width"] = float(np.mean(widths))
    if options.json:
        print(json.dumps(document))
        return
    for key, value in document.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v:.2%}" for k, v in value.items())
        elif isinstance(value, float):
            value = f"{value:.4g}"
        print(f"{key:20} {value}")


if __name__ == "__main__":
    main()
