"""What each runtime does with the networks of each space, and how well its latency is predicted.

python benchmarks/runtimes.py [--json] [--quick] [--runtimes R,…] [--spaces S,…] [--networks N]
                              [--resolution R] [--latency]
Random networks of every space (seed 0) are converted, run, and compared with ONNX Runtime on five
inputs of noise: the largest difference of an answer, of the outputs' deviation. With --latency the
space is profiled on the runtime (into benchmarks/profiles/, which is completed where it is there)
and its latency model is judged on fresh networks. --quick takes 2 networks, of 12 for latency.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

import deploynas as dn
from deploynas.device import open_device
from deploynas.errors import DeploynasError
from deploynas.export.formats import difference_of
from deploynas.graph.emit import RandomWeights, write_model
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.runtime import Runtime
from deploynas.profile import LatencyModel, profile_space
from deploynas.profile.validate import fresh_archs, validate
from deploynas.runtimes import RUNTIMES
from deploynas.spaces import SearchSpace, space_names

CLASSES = {"num_classes": 10, "in_channels": 3}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runtimes", help="by default those of this machine that travel")
    parser.add_argument("--spaces", help="by default all")
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--latency", action="store_true")
    options = parser.parse_args()
    names = options.runtimes.split(",") if options.runtimes else RUNTIMES.names()
    chosen = options.spaces.split(",") if options.spaces else space_names()
    count = 2 if options.quick else options.networks
    rows = []
    for name in names:
        for space_name in chosen:
            space = dn.space(space_name, resolutions=[options.resolution], **CLASSES)
            row: dict[str, object] = {"runtime": name, "space": space_name}
            try:
                row |= parity(RUNTIMES.load(name), space, count)
                if options.latency:
                    row |= latency(RUNTIMES.load(name), space, 12 if options.quick else 40)
            except DeploynasError as error:
                row["error"] = str(error)
            rows.append(row)
            if not options.json:
                print(line(row), flush=True)
    if options.json:
        json.dump({"resolution": options.resolution, "rows": rows}, sys.stdout, indent=1)


def parity(runtime: Runtime, space: SearchSpace, count: int) -> dict[str, object]:
    """The largest difference over ``count`` networks, and what converting one takes."""
    device = open_device(next(iter(runtime.devices)))
    differences, seconds = [], []
    for arch in space.sample(count, np.random.default_rng(0)):
        with temporary_folder() as folder:
            model = write_model(folder / "n.onnx", space.layers(arch), RandomWeights())
            start = time.perf_counter()
            path = runtime.convert(model, folder)
            seconds.append(time.perf_counter() - start)
            differences.append(difference_of(device, path, model))
    return {
        "networks": count, "difference": max(differences),
        "convert_s": float(np.median(seconds)),
    }  # fmt: skip


def latency(runtime: Runtime, space: SearchSpace, count: int) -> dict[str, object]:
    """Minutes that a profile takes, and the error of its model on fresh networks."""
    device = open_device(next(iter(runtime.devices)))
    folder = Path(__file__).parent / "profiles"
    path = folder / f"{runtime.name}-{space.spec['name']}-{space.resolutions[-1]}.json"
    start = time.monotonic()
    profile, num_layers = profile_space(space, device, path)
    minutes = (time.monotonic() - start) / 60
    table = validate(
        LatencyModel(space, profile), profile, device, fresh_archs(space, profile, count)
    ).table
    return {
        "layers_measured": num_layers, "profile_minutes": minutes, "mape": table.mape,
        "kendall_tau": table.kendall_tau, "noise_floor": table.noise_floor,
    }  # fmt: skip


def line(row: dict[str, object]) -> str:
    """One line for people."""
    text = f"{row['runtime']:16}{row['space']:20}"
    if "difference" in row:
        text += f"{row['difference']:.1e} over {row['networks']} networks, "
        text += f"{1e3 * float(str(row['convert_s'])):.0f} ms each to convert"
    if "mape" in row:
        text += (
            f"; {row['layers_measured']} layers in {row['profile_minutes']:.1f} minutes, error "
            f"{row['mape']:.2%} (noise {row['noise_floor']:.2%}), tau {row['kendall_tau']:.3f}"
        )
    return f"{text}{row.get('error', '')}"


if __name__ == "__main__":
    main()
