"""Error of the latency model on networks that it has never seen, measured now.

python benchmarks/latency_model.py [--json] [--quick] [--space S] [--resolution R]… [--threads N]
                                   [--device D] [--searched]
Fresh networks are drawn with seed 20,001; calibration draws with others. With --searched, 20
networks are judged instead that the evolutionary search returns at 20 latency budgets across the
space's range, with MACs in place of accuracy: nothing exploits the model's errors harder than a
search for the most work in the predicted time. What the machine drifted since the profile is told
by six of the profile's own networks, measured again beside those judged, and taken out. The
profile is made (or completed) in benchmarks/profiles/; --fresh makes it anew and prints the time
that it took.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import deploynas as dn
from deploynas.device import device_names, open_device
from deploynas.profile import LatencyModel, profile_space
from deploynas.profile.validate import SEED, fresh_archs, validate
from deploynas.search import Budget, Effort, Problem, explore
from deploynas.search.strategies.ofa import STRATEGY as OFA
from deploynas.spaces import Archs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="12 networks instead of 40")
    parser.add_argument("--space", default="ofa-mbv3-w1.0")
    parser.add_argument("--resolution", action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=device_names())
    parser.add_argument("--searched", action="store_true", help="networks that a search returns")
    parser.add_argument("--fresh", action="store_true", help="profile from nothing")
    options = parser.parse_args()
    space = dn.space(options.space, resolutions=options.resolution)
    device = open_device(options.device, options.threads)
    path = Path(__file__).parent / "profiles" / f"{options.device}-t{options.threads}.json"
    if options.fresh:
        path.unlink(missing_ok=True)
    start = time.monotonic()
    profile, num_layers = profile_space(space, device, path)
    profile_s = time.monotonic() - start
    model = LatencyModel(space, profile)
    if options.searched:
        archs = searched(model, 6 if options.quick else 20, np.random.default_rng(SEED))
    else:
        archs = fresh_archs(space, profile, 12 if options.quick else 40)
    judgement = validate(model, profile, device, archs)
    document = {
        "space": options.space,
        "networks": "searched" if options.searched else "fresh",
        "resolutions": [one.plain for one in space.resolutions],
        "device": options.device,
        "threads": options.threads,
        "layers_measured": num_layers,
        "profile_s": profile_s,
        "mean_bias": judgement.bias,
        "drift_taken_out": judgement.drift,
        "worst": judgement.worst,
        "sum_of_layers_mape": judgement.sum_mape,
        "stated_error": judgement.half_width,
        **judgement.table.model_dump(),
    }
    if options.json:
        print(json.dumps(document))
    else:
        for key, value in document.items():
            print(f"{key:18} {value:.4f}" if isinstance(value, float) else f"{key:18} {value}")


def searched(model: LatencyModel, num: int, rng: np.random.Generator) -> Archs:
    """The network with the most MACs within each of ``num`` latency budgets."""
    space = model.space
    ends = model.upper_ms(np.concatenate([space.smallest(), space.largest()]))
    found = []
    for limit in np.geomspace(ends[0] * 1.1, ends[1] * 0.97, num):
        problem = Problem(model, Budget(latency_ms=float(limit)))
        history = explore(OFA, OFA.options(), problem, space.macs, rng, Effort(400))
        found.append(history.archs[history.best(1)[0]])
    return np.stack(found)


if __name__ == "__main__":
    main()
