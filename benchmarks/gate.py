"""Does the regression gate cry wolf, and does it find what is slower?

python benchmarks/gate.py [--json] [--quick] [--equal 100] [--slower 50] [--load] [--minutes M]
A network of ofa-mbv3-w1.0 at 160 px (about 4 ms here) is the baseline. Candidates: the same file
under another name (A/A), and networks with a few blocks changed, whose slow-downs are measured
first, over many sessions; the two nearest to 2 % and to 10 % are taken. With --load another
process keeps a core busy all the while. The gate is 5 %. Every decision is kept in
benchmarks/runs/gate, so that a run that was stopped goes on; --minutes stops it in time and prints
what there is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import deploynas as dn
from deploynas.check import Baseline
from deploynas.check.regression import against
from deploynas.device import LocalDevice, StopRule, measure
from deploynas.graph import RandomWeights, write_model
from deploynas.onboard.timing import estimate

RUNS = Path(__file__).parent / "runs" / "gate"
GATE = 0.05
WANTED = {"slower by 2 %": 1.02, "slower by 10 %": 1.10}
SEED = 60_001


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="5 and 3 decisions")
    parser.add_argument("--equal", type=int, default=100)
    parser.add_argument("--slower", type=int, default=50)
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--minutes", type=float, default=np.inf)
    options = parser.parse_args()
    if options.quick:
        options.equal, options.slower = 5, 3
    started = time.monotonic()
    RUNS.mkdir(parents=True, exist_ok=True)
    device = LocalDevice()
    candidates, ratios = prepared(device)
    document: dict[str, object] = {"load": options.load, "true_ratios": ratios}
    with busy() if options.load else nothing():
        for name, path in candidates.items():
            num = options.equal if name == "equal" else options.slower
            done = decisions(device, name, path, num, options, started)
            seconds = [d["seconds"] for d in done]
            document[name] = {
                "decisions": len(done),
                **Counter(d["outcome"] for d in done),
                "seconds_median": float(np.median(seconds)) if seconds else None,
                "seconds_worst": max(seconds, default=None),
                "ratio_median": float(np.median([d["ratio"] for d in done])) if done else None,
                "ratio_sd": float(np.std([d["ratio"] for d in done])) if done else None,
            }
    if options.json:
        print(json.dumps(document))
        return
    for key, value in document.items():
        print(f"{key:16} {value}")


def prepared(device: LocalDevice) -> tuple[dict[str, Path], dict[str, float]]:
    """The candidates' files, and how much slower than the baseline they are; made once."""
    record = RUNS / "candidates.json"
    names = ["equal", *WANTED]
    paths = {
        name: RUNS / f"{name.replace(' ', '-').replace('%', 'percent')}.onnx" for name in names
    }
    if record.exists():
        return paths, json.loads(record.read_text())
    space = dn.space("ofa-mbv3-w1.0", resolutions=[160])
    arch = space.sample(1, np.random.default_rng(SEED))[0]
    base = write_model(RUNS / "baseline.onnx", space.layers(arch), RandomWeights(0))
    shutil.copyfile(base, paths["equal"])
    tried = {"baseline": base}
    rows = space.mutate(np.repeat(arch[None], 400, axis=0), 0.06, np.random.default_rng(SEED))
    shares = space.macs(rows) / space.macs(arch[None])
    for target in np.linspace(1.0, 1.2, 16):
        row = rows[np.abs(shares - target).argmin()]
        path = RUNS / f"tried-{target:.3f}.onnx"
        tried[path.stem] = write_model(path, space.layers(row), RandomWeights(0))
    rule = StopRule(precision=0.0, min_sessions=10, max_sessions=10, rounds=20)
    samples = measure(device, tried, rule)
    true = {}
    for name, path in tried.items():
        pairs = zip(samples[name].ms, samples["baseline"].ms, strict=True)
        true[path] = estimate([np.array(a) / np.array(b) for a, b in pairs]).median
    ratios = {}
    for name, wanted in WANTED.items():
        nearest = min(true, key=lambda path: abs(true[path] - wanted))
        ratios[name] = true[nearest]
        shutil.copyfile(nearest, paths[name])
    for path in tried.values():
        if path != base:
            path.unlink()
    record.write_text(json.dumps(ratios))
    return paths, ratios


def decisions(
    device: LocalDevice,
    name: str,
    path: Path,
    num: int,
    options: argparse.Namespace,
    started: float,
) -> list[dict]:
    """What the gate decided, now and before."""
    journal = RUNS / f"{path.stem}{'-load' if options.load else ''}.jsonl"
    done = (
        [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    )
    while len(done) < num and time.monotonic() - started < options.minutes * 60:
        start = time.monotonic()
        found = against(device, path, Baseline(RUNS / "baseline.onnx", GATE))
        done.append(
            {
                "outcome": found.outcome,
                "seconds": time.monotonic() - start,
                "ratio": found.ratio.median,
            }
        )
        with journal.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    return done[:num]


@contextmanager
def busy() -> Iterator[None]:
    """Another process that computes all the while."""
    process = subprocess.Popen([sys.executable, "-c", "while True: sum(range(10_000))"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def nothing() -> Iterator[None]:
    """No other process of ours."""
    yield


if __name__ == "__main__":
    main()
