"""Does the regression gate cry wolf, and does it find what is slower?

python benchmarks/gate.py [--json] [--quick] [--equal 100] [--slower 50] [--load] [--minutes M]
A network of ofa-mbv3-w1.0 at 160 px (about 4 ms here) is the baseline. Candidates: the same file
under another name (A/A), and networks with a few blocks changed, whose slow-downs are measured
first, over many sessions; the two nearest to 2 % and to 10 % are taken. With --load another
process keeps a core busy all the while. The gate is 5 %. Every decision is kept in
benchmarks/runs/gate, so that a run that was stopped goes on; --minutes stops it in time and prints
what there is.

python benchmarks/gate.py --simulate [--json] [--quick]
How often intervals hold the truth and the gate errs, of 10,000 simulated: the sessions of a ratio
scatter normally by 1 %, or as those of pairs of networks do in the profiles that ship, resampled
(measured on busy machines, so that the noise of touches is in it).
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

import deploynas as dn
from deploynas.check import Baseline
from deploynas.check.regression import against, decide, looks
from deploynas.check.verdict import RULE
from deploynas.device import Estimate, LocalDevice, StopRule, measure
from deploynas.graph import RandomWeights, write_model
from deploynas.onboard.timing import Floats, estimate, interval
from deploynas.profile import DeviceProfile

SHIPPED = Path(dn.__file__).parent / "shipped_profiles"
RUNS = Path(__file__).parent / "runs" / "gate"
GATE = 0.05
WANTED = {"slower by 2 %": 1.02, "slower by 10 %": 1.10}
SEED = 60_001
INTERVAL = partial(interval, confidence=0.95)
MAX_SESSIONS = 80  # what the 120 seconds of --timeout hold of a model of some milliseconds
NUM_PAIRS = 200  # of networks, for each space of a profile
SCENES = {  # name -> true ratio, limit
    "equal, limit 5 %": (1.0, 0.05),
    "+5 %, limit 5 %": (1.05, 0.05),
    "+10 %, limit 5 %": (1.10, 0.05),
    "equal, limit 2 %": (1.0, 0.02),
    "+4 %, limit 2 %": (1.04, 0.02),
    "equal, limit 0 %": (1.0, 0.0),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="5 and 3 decisions")
    parser.add_argument("--equal", type=int, default=100)
    parser.add_argument("--slower", type=int, default=50)
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--minutes", type=float, default=np.inf)
    parser.add_argument("--simulate", action="store_true", help="no device")
    options = parser.parse_args()
    if options.simulate:
        report(simulated(1_000 if options.quick else 10_000), options.json)
        return
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


def simulated(num: int) -> dict[str, dict]:
    """Coverage of intervals and outcomes of ``num`` decisions, by what sessions scatter by."""
    rng = np.random.default_rng(SEED)
    measured = session_effects(rng)
    pool = np.concatenate(list(measured.values()))
    draws = {
        "1 %": lambda *shape: rng.normal(0.0, 0.01, shape),
        "as measured": lambda *shape: rng.choice(pool, shape),
    }
    return {
        "session_sd": {
            **{name: float(np.std(effects)) for name, effects in measured.items()},
            "as measured": float(np.std(pool)),
        },
        "coverage": {
            name: {
                **{str(n): coverage(draw(num, n)) for n in (2, 3, 4, 8)},
                "check": coverage(draw(num, RULE.max_sessions), until_precise),
            }
            for name, draw in draws.items()
        },
        "decisions": {
            name: {
                scene: outcomes(np.log(ratio) + draw(num, MAX_SESSIONS), limit)
                for scene, (ratio, limit) in SCENES.items()
            }
            for name, draw in draws.items()
        },
    }


def session_effects(rng: np.random.Generator) -> dict[str, Floats]:
    """File and space -> by how much sessions move a pair of networks' log ratio from its mean."""
    found = {}
    for path in sorted(SHIPPED.glob("*.json.gz")):
        for key, networks in DeviceProfile.load(path).networks.items():
            pairs = list(itertools.combinations([record.samples.ms for record in networks], 2))
            effects = []
            for i in rng.permutation(len(pairs))[:NUM_PAIRS]:
                ratios = [np.log(np.divide(a, b)) for a, b in zip(*pairs[i], strict=True)]
                logs = np.array([np.median(ratio) for ratio in ratios])
                unbiased = np.sqrt(len(logs) / (len(logs) - 1))
                effects.append((logs - logs.mean()) * unbiased)
            found[f"{path.name} {key}"] = np.concatenate(effects)
    return found


def coverage(logs: Floats, of_row: Callable[[Floats], Floats] = INTERVAL) -> float:
    """Share of the 95 % intervals of rows of sessions that hold 0."""
    ends = np.array([of_row(row) for row in logs])
    return float(((ends[:, 0] <= 0) & (ends[:, 2] >= 0)).mean())


def until_precise(logs: Floats) -> Floats:
    """Interval of as many sessions as `check` without a baseline takes."""
    for number in range(RULE.min_sessions, RULE.max_sessions + 1):
        ends = INTERVAL(logs[:number])
        if ends[2] - ends[1] <= RULE.precision:
            break
    return ends


def outcomes(logs: Floats, limit: float) -> dict[str, float]:
    """Shares of what the gate says of rows of sessions, and how many of these it needs."""
    found = [decided(row, limit) for row in logs]
    counts = Counter(outcome for outcome, _ in found)
    shares = {name: counts[name] / len(logs) for name in ("pass", "regressed", "inconclusive")}
    return {**shares, "sessions_median": float(np.median([number for _, number in found]))}


def decided(logs: Floats, limit: float) -> tuple[str, int]:
    """Outcome, and after how many sessions, as `against` would decide."""
    for wanted, confidence in looks():
        number = min(wanted, len(logs))
        low, centre, high = np.exp(interval(logs[:number], confidence))
        outcome = decide(Estimate(centre, low, high, number), limit)
        if outcome != "inconclusive" or number == len(logs):
            break
    return outcome, number


def report(document: dict[str, dict], as_json: bool) -> None:
    """Print what was simulated."""
    if as_json:
        print(json.dumps(document))
        return
    print("standard deviation of sessions")
    for name, value in document["session_sd"].items():
        print(f"  {name:56} {value:6.1%}")
    for name, shares in document["coverage"].items():
        text = ", ".join(f"{share:.1%} of {n}" for n, share in shares.items())
        print(f"95 % intervals that hold the truth, sessions scatter {name}: {text}")
    for name, scenes in document["decisions"].items():
        print(f"decisions, sessions scatter {name}")
        print(f"  {'':18} {'pass':>8} {'regressed':>10} {'untold':>8} {'median sessions':>16}")
        for scene, x in scenes.items():
            print(
                f"  {scene:18} {x['pass']:8.2%} {x['regressed']:10.2%} "
                f"{x['inconclusive']:8.2%} {x['sessions_median']:16.0f}"
            )


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
