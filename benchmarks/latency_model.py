"""Error of the latency model on fresh networks, measured now.

python benchmarks/latency_model.py [--json] [--quick] [--space S] [--resolution R]… [--threads N]
The profile is made (or completed) in benchmarks/profiles/. The judged networks are drawn with
seed 20_001; calibration draws with others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

import deploynas as dn
from deploynas.device import CpuDevice, Level, StopRule, measure
from deploynas.graph import RandomWeights, emit
from deploynas.profile import LatencyModel, profile_space
from deploynas.profile.latency_model import judge

SEED = 20_001


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="12 networks instead of 40")
    parser.add_argument("--space", default="ofa-mbv3-w1.0")
    parser.add_argument("--resolution", type=int, action="append")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    space = dn.space(options.space, resolutions=options.resolution)
    device = CpuDevice(options.threads)
    path = Path(__file__).parent / "profiles" / f"cpu-t{options.threads}.json"
    start = time.monotonic()
    profile, num_layers = profile_space(space, device, path)
    profile_s = time.monotonic() - start
    model = LatencyModel(space, profile)
    archs = space.sample(12 if options.quick else 40, np.random.default_rng(SEED))
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for i, arch in enumerate(archs):
            paths[str(i)] = Path(folder) / f"{i}.onnx"
            content = emit(space.layers(arch), RandomWeights(i)).SerializeToString()
            paths[str(i)].write_bytes(content)
        samples = measure(device, paths, StopRule(min_sessions=5, max_sessions=8), seed=SEED)
    assert profile.level is not None
    level = Level(profile.level.core_ms, profile.level.memory_ms)
    estimates = [samples[str(i)].estimate(level) for i in range(len(archs))]
    measured = np.array([e.median for e in estimates])
    predicted = model.predict_ms(archs)
    table = judge(predicted, measured, [e.half_width for e in estimates])
    error = predicted / measured - 1
    document = {
        "space": options.space,
        "resolutions": list(space.resolutions),
        "threads": options.threads,
        "layers_measured": num_layers,
        "profile_s": profile_s,
        "mean_bias": float(error.mean()),
        "worst": float(np.abs(error).max()),
        **table.model_dump(),
    }
    if options.json:
        print(json.dumps(document))
    else:
        for key, value in document.items():
            print(f"{key:18} {value:.4f}" if isinstance(value, float) else f"{key:18} {value}")


if __name__ == "__main__":
    main()
