"""Our evolution beside the published EvolutionFinder, on one predictor and one cost.

python benchmarks/finder.py [--json] [--quick] [--max-flops M]
Needs the package ``ofa`` (extra ``peers``). Space ofa-mbv3-w1.0 at 224 px. Both maximise the same
MLP (the package's architecture, 3 x 400, trained here on 4,000 networks to what the shipped
ImageNet predictor says) under the same limit on MACs, which both count alike. The package runs
its own 500 generations of 100; the ratio is its time over ours to the score that it ends with,
median over the seeds. Timed in turn, one process, torch on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import time
from types import SimpleNamespace

import numpy as np
import torch

import deploynas as dn
from deploynas.search import Budget, Effort, Problem, explore
from deploynas.search.strategies.ofa import STRATEGY as OFA
from deploynas.spaces import Archs
from deploynas.workflows.published import NUM_EVALUATIONS

SPACE = dn.space("ofa-mbv3-w1.0", resolutions=[224])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="1 seed, 60 generations")
    parser.add_argument("--max-flops", type=float, default=300e6, help="MACs")
    options = parser.parse_args()
    try:
        from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3
        from ofa.nas.accuracy_predictor import AccuracyPredictor, MobileNetArchEncoder
        from ofa.nas.efficiency_predictor import Mbv3FLOPsModel
        from ofa.nas.search_algorithm import EvolutionFinder
    except ImportError as error:
        raise SystemExit(f"{error}: pip install 'deploynas[peers]'") from None
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = MobileNetArchEncoder(image_size_list=[224])
    predictor = AccuracyPredictor(encoder, device="cpu")
    train(predictor, encoder)
    net = OFAMobileNetV3(ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4])
    costs = Mbv3FLOPsModel(net)
    check_same(predictor, encoder, costs)
    rows = []
    for seed in range(1 if options.quick else 5):
        random.seed(seed)
        np.random.seed(seed)
        counted = Counted(costs)
        finder = EvolutionFinder(counted, predictor, max_time_budget=60 if options.quick else 500)
        start = time.perf_counter()
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            _, (theirs, *_) = finder.run_evolution_search(options.max_flops / 1e6)
        ofa_s = time.perf_counter() - start
        ours, reached_s, ours_s, evaluations = run_ours(
            predictor, encoder, options.max_flops, seed, theirs
        )
        rows.append(
            {
                "ofa_s": ofa_s,
                "ours_s": ours_s,
                "ours_to_their_score_s": reached_s,
                "ofa_best": theirs,
                "ours_best": ours,
                "ofa_per_s": counted.calls / ofa_s,
                "ours_per_s": evaluations / ours_s,
                "ratio": None if reached_s is None else ofa_s / reached_s,
            }
        )
    ratios = [row["ratio"] or 0.0 for row in rows]
    document = {
        "max_flops": options.max_flops,
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
        **{
            key: float(np.median([row[key] for row in rows]))
            for key in ("ours_per_s", "ofa_per_s", "ours_best", "ofa_best", "ofa_s", "ours_s")
        },
        "never_below": all(row["ours_best"] >= row["ofa_best"] - 1e-6 for row in rows),
        "seeds": rows,
    }
    if options.json:
        print(json.dumps(document))
        return
    for key, value in document.items():
        if key != "seeds":
            print(f"{key:12} {value:.6g}" if isinstance(value, float) else f"{key:12} {value}")


class Counted:
    """An efficiency model that counts the architectures it was asked about."""

    def __init__(self, costs) -> None:
        self._costs = costs
        self.calls = 0

    def get_efficiency(self, arch) -> float:
        self.calls += 1
        return self._costs.get_efficiency(arch)


def as_theirs(archs: Archs) -> list[dict[str, object]]:
    """Architectures in the package's dict form."""
    return [
        {
            "ks": arch["kernel_sizes"], "e": arch["expand_ratios"], "d": arch["depths"],
            "image_size": arch["resolution"],
        }
        for arch in SPACE.decode(archs)
    ]  # fmt: skip


def train(predictor, encoder) -> None:
    """Fit the package's MLP to the shipped predictor's accuracies, in points."""
    rng = np.random.default_rng(0)
    archs = np.concatenate([SPACE.sample(2_000, rng), SPACE.sample_spread(2_000, rng)])
    y = torch.tensor(dn.imagenet_predictor(SPACE).predict(archs) * 100).float()
    x = torch.tensor(encode(archs, encoder)).float()
    predictor.base_acc.data.fill_(float(y.mean()))
    optimizer = torch.optim.Adam(predictor.layers.parameters(), 1e-3)
    for _ in range(30):
        for part in torch.randperm(len(x)).split(200):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(predictor(x[part]), y[part]).backward()
            optimizer.step()


def encode(archs: Archs, encoder) -> np.ndarray:
    """``(n, encoder.n_dim)`` the package's one-hot features, for whole batches."""
    _, kernels, ratios = SPACE.unpacked(archs)
    x = np.zeros((len(archs), encoder.n_dim), np.float32)
    rows = np.arange(len(archs))
    for values, info in ((kernels, encoder.k_info), (ratios, encoder.e_info)):
        for block, ids in enumerate(info["val2id"]):
            for value, column in ids.items():
                x[rows, column] = values[:, block] == value
    x[:, encoder.r_info["L"][0]] = 1.0
    return x


def check_same(predictor, encoder, costs) -> None:
    """Both sides must see the same features and costs."""
    archs = SPACE.sample(50, np.random.default_rng(1))
    theirs = as_theirs(archs)
    features = np.array([encoder.arch2feature(arch) for arch in theirs])
    if not np.array_equal(features, encode(archs, encoder)):
        raise SystemExit("the features differ from the package's")
    macs = np.array([costs.get_efficiency(arch) for arch in theirs])
    difference = np.abs(macs * 1e6 - SPACE.macs(archs)).max() / SPACE.macs(archs).max()
    if difference > 1e-3:
        raise SystemExit(f"the MACs differ from the package's by {difference:.2%}")


def run_ours(predictor, encoder, max_flops, seed, target):
    """Best score, seconds to ``target`` (None if never), seconds in all, evaluations."""
    best, reached, evaluations = -np.inf, None, 0
    start = time.perf_counter()

    def evaluate(archs: Archs) -> np.ndarray:
        nonlocal best, reached, evaluations
        with torch.no_grad():
            scores = predictor(torch.from_numpy(encode(archs, encoder))).numpy().astype(float)
        evaluations += len(archs)
        best = max(best, float(scores.max()))
        if reached is None and best >= target:
            reached = time.perf_counter() - start
        return np.atleast_1d(scores)

    problem = Problem(SimpleNamespace(space=SPACE), Budget(macs=max_flops))
    rng, effort = np.random.default_rng(seed), Effort(NUM_EVALUATIONS)
    explore(OFA, OFA.options(), problem, evaluate, rng, effort)
    return best, reached, time.perf_counter() - start, evaluations


if __name__ == "__main__":
    main()
