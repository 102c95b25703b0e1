"""Does a prediction's bound hold, hours later and beside other programs?

python benchmarks/bound.py [--json] [--quick] [--minutes 75] [--space S] [--resolution R]
                           [--device cpu] [--load] [--pairs 5]
Networks are chosen as a search chooses them: of 400 that evolution evaluates, the one of the most
work whose bound keeps a budget. At every moment some of the profile's networks are measured again,
and the bound is that of now. Then each chosen network is timed by a loop of its own: plain ONNX
Runtime in a fresh process, no reference models, the median of a second; of three processes the
geometric mean. A pair is a network at a moment; its bound holds where that is within ``upper_ms``.

The profile is made first where there is none in benchmarks/runs/bound. Moments are: right after
the profile (until 30 minutes later), later (60 minutes and more), and, with --load, beside a
program that keeps a core busy. Every pair is journalled there, so that runs of several days pool;
--minutes ends a run. Delete the folder to begin anew.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from gate import busy

import deploynas as dn
from deploynas.device import LocalDevice
from deploynas.graph import RandomWeights, write_model
from deploynas.profile import DeviceProfile, LatencyModel, profile_space
from deploynas.profile.refresh import refresh
from deploynas.search import Budget, Effort, Problem, explore
from deploynas.search.strategies.ofa import STRATEGY as OFA
from deploynas.spaces import Archs

RUNS = Path(__file__).parent / "runs" / "bound"
SOON, LATER = 30 * 60, 60 * 60  # seconds after the profile
NUM_PROCESSES, SECONDS = 3, 1.0
LOOP = """
import sys, time, statistics
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(one,) = session.get_inputs()
feed = {one.name: np.random.default_rng(0).standard_normal(one.shape).astype(np.float32)}
for _ in range(5):
    session.run(None, feed)
took, end = [], time.perf_counter() + float(sys.argv[2])
while time.perf_counter() < end or len(took) < 15:
    begun = time.perf_counter()
    session.run(None, feed)
    took.append(time.perf_counter() - begun)
print(statistics.median(took) * 1e3)
"""


def main() -> None:
    """Measure, and print the table of all that was ever measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two moments, in about two minutes")
    parser.add_argument("--minutes", type=float, default=75.0)
    parser.add_argument("--space", default="ofa-mbv3-w1.0")
    parser.add_argument("--resolution", action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5, help="networks a moment")
    parser.add_argument("--load", action="store_true", help="a program keeps a core busy")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    space = dn.space(options.space, resolutions=options.resolution or ["224"])
    device = LocalDevice("cpu", options.threads)
    sides = "-".join(map(str, space.resolutions))
    folder = RUNS / f"{space.name}-{sides}-t{options.threads}"
    folder.mkdir(parents=True, exist_ok=True)
    path, journal = folder / "cpu.json", folder / "pairs.jsonl"
    if not path.exists():
        profile_space(space, device, path)
    model = LatencyModel(space, DeviceProfile.load(path))
    made = model.validation.made or 0.0
    rng = np.random.default_rng(time.time_ns())
    moments = 0
    with busy() if options.load else nullcontext():
        while time.monotonic() < ends and not (options.quick and moments == 2):
            now = model.at(refresh(model, device))
            for arch in chosen(now, options.pairs, rng):
                pair = {
                    "at": time.time(), "age": time.time() - made, "load": options.load,
                    "half_width": now.half_width, "bound": vars(now.bound),
                    "factor": now.drift.factor,
                    "predicted_ms": float(now.predict_ms(arch)[0]),
                    "upper_ms": float(now.upper_ms(arch)[0]),
                    "measured_ms": timed(now, arch, options.threads),
                }  # fmt: skip
                with journal.open("a") as file:
                    file.write(json.dumps(pair) + "\n")
            moments += 1
    pairs = [json.loads(line) for line in journal.read_text().splitlines()]
    report(pairs, as_json=options.json)


def chosen(model: LatencyModel, num: int, rng: np.random.Generator) -> Iterator[Archs]:
    """The network of the most work within each of some budgets, ``(1, num_choices)``."""
    space = model.space
    low, high = model.upper_ms(np.concatenate([space.smallest(), space.largest()]))
    for limit in np.exp(rng.uniform(math.log(low * 1.1), math.log(high * 0.97), num)):
        problem = Problem(model, Budget(latency_ms=float(limit)))
        history = explore(OFA, OFA.options(), problem, space.macs, rng, Effort(400))
        yield history.archs[history.best(1)]


def timed(model: LatencyModel, arch: Archs, threads: int) -> float:
    """Milliseconds, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "a.onnx", model.space.layers(arch[0]), RandomWeights(0))
        command = [sys.executable, "-c", LOOP, str(path), str(SECONDS), str(threads)]
        found = [
            float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            for _ in range(NUM_PROCESSES)
        ]
    return float(np.exp(np.log(found).mean()))


def report(pairs: list[dict[str, Any]], *, as_json: bool) -> None:
    """Of all pairs, and of each kind of moment."""
    kinds = {
        "all": lambda pair: True,
        "right after, alone": lambda pair: pair["age"] < SOON and not pair["load"],
        "later, alone": lambda pair: pair["age"] >= LATER and not pair["load"],
        "beside a busy core": lambda pair: pair["load"],
    }
    table = {name: row_of([p for p in pairs if of(p)]) for name, of in kinds.items()}
    if as_json:
        print(json.dumps(table))
        return
    for name, row in table.items():
        if not row["pairs"]:
            print(f"{name:20} nothing measured")
            continue
        low, high = row["share_interval"]
        print(
            f"{name:20} {row['pairs']} pairs of {row['moments']} moments: within the bound "
            f"{row['share']:.1%} ({low:.1%}-{high:.1%}), mean error {row['mean_error']:.2%}, bias "
            f"{row['bias']:+.2%}, half-width {row['half_width']:.2%} (fit {row['fit']:.2%}, drift "
            f"{row['drift']:.2%}, optimism {row['optimism']:.2%}), factor "
            f"{row['factor_low']:.3f}-{row['factor_high']:.3f}"
        )


def row_of(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Share within the bound, with its interval over moments, and errors."""
    if not pairs:
        return {"pairs": 0}
    kept = np.array([p["measured_ms"] <= p["upper_ms"] for p in pairs])
    errors = np.array([p["measured_ms"] / p["predicted_ms"] - 1 for p in pairs])
    factors = np.array([p["factor"] for p in pairs])
    moments = [np.flatnonzero(factors == factor) for factor in np.unique(factors)]
    rng = np.random.default_rng(0)  # pairs of a moment are not independent: moments are drawn
    drawn = [
        kept[np.concatenate([moments[i] for i in rng.integers(0, len(moments), len(moments))])]
        for _ in range(2_000)
    ]
    shares = np.array([one.mean() for one in drawn])
    parts = {name: np.median([p["bound"][name] for p in pairs]) for name in pairs[0]["bound"]}
    return {
        "pairs": len(pairs),
        "moments": len(moments),
        "share": float(kept.mean()),
        "share_interval": (
            min(float(np.quantile(shares, 0.025)), wilson(kept, -1)),
            max(float(np.quantile(shares, 0.975)), wilson(kept, 1)),
        ),
        "mean_error": float(np.abs(errors).mean()),
        "bias": float(errors.mean()),
        "half_width": float(np.median([p["half_width"] for p in pairs])),
        **{name: float(value) for name, value in parts.items()},
        "factor_low": float(factors.min()),
        "factor_high": float(factors.max()),
    }


def wilson(kept: np.ndarray, side: int) -> float:
    """An end of Wilson's 95 % interval of a share."""
    num, share, z = len(kept), float(kept.mean()), 1.96
    centre = share + z * z / (2 * num)
    half = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return float(np.clip((centre + side * half) / (1 + z * z / num), 0, 1))


if __name__ == "__main__":
    main()
