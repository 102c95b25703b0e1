"""MACs and params against published figures, and the speed of pricing architectures.

python benchmarks/costs.py [--json] [--quick] [--data DIR]
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import time
from pathlib import Path

import numpy as np

import deploynas as dn
from deploynas.profile import LatencyModel
from deploynas.spaces import layers, parse_net


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="100,000 architectures")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data")
    options = parser.parse_args()
    space = dn.space("ofa-mbv3-w1.0")
    document: dict[str, object] = {}
    rows = [r for f in sorted(options.data.glob("ofa_mbv3_imagenet/*.csv")) for r in read(f)]
    if rows:
        parsed = [ast.literal_eval(row["Sub-network"]) for row in rows]
        archs = space.encode(
            [
                {"resolution": 224, "depths": p["d"], "kernel_sizes": p["ks"],
                 "expand_ratios": p["e"]}
                for p in parsed
            ]
        )  # fmt: skip
        equal = (space.macs(archs) == [int(r["MACs"]) for r in rows]) & (
            space.params(archs) == [int(r["Model Parameters"]) for r in rows]
        )
        document |= {"published_rows": len(rows), "equal_rows": int(equal.sum())}
    for row in read(options.data / "published_nets/published.csv"):
        net = json.loads((options.data / f"published_nets/{row['id']}.json").read_text())
        nodes = parse_net(net)
        macs = sum(layers.macs(n.layer) for n in nodes) / 1e6 - float(row["macs_millions"])
        params = sum(layers.params(n.layer) for n in nodes) / 1e6 - float(row["params_millions"])
        if abs(macs) > 1 or abs(params) > 0.06:
            document.setdefault("networks_that_differ", []).append([row["id"], macs, params])
    n = 100_000 if options.quick else 1_000_000
    model = latency_model()
    priced = model.space if model else space
    archs = priced.sample(n, np.random.default_rng(0))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        priced.macs(archs)
        priced.params(archs)
        if model:
            model.predict_ms(archs)
        seconds.append(time.perf_counter() - start)
    what = "latency_macs_params_s" if model else "macs_and_params_s"
    document |= {"architectures": n, what: float(np.median(seconds))}
    if not model:
        document["no_latency"] = "make a profile first: python benchmarks/latency_model.py"
    if options.json:
        print(json.dumps(document))
    else:
        for key, value in document.items():
            print(f"{key:22} {value}")


def latency_model() -> LatencyModel | None:
    """The model of the profile that benchmarks/latency_model.py made, where it did."""
    path = Path(__file__).parent / "profiles" / "cpu-t1.json"
    if not path.exists():
        return None
    profile = dn.DeviceProfile.load(path)
    return LatencyModel(profile.restrict(dn.space("ofa-mbv3-w1.0")), profile)


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none where it is absent."""
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
