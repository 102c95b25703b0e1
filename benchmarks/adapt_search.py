"""Networks of one's own made to meet a latency: how close, how exactly told, at what loss.

python benchmarks/adapt_search.py --part budget [--only NAME] [--share 0.6] [--journal FILE]
python benchmarks/adapt_search.py --part resnet20 --data CIFAR10 --weights FILE [--seeds N]
python benchmarks/adapt_search.py --part lite0 --data CIFAR10

``budget``: ten networks with random weights, each to a share of its own latency: what was found,
measured again beside the original, over what was asked, and over what was predicted before it was
measured. ``resnet20``: a trained ResNet-20 (``gpu.py --part resnet`` trains it, on a CPU too),
before and after training, beside the same narrowed uniformly. ``lite0``: EfficientNet-Lite0 with
its ImageNet weights and a head for 4,000 images of CIFAR-10 at 96 px, likewise.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploynas.data import ImageDataset, Split, load_dataset
from deploynas.data.imagenet import MEAN, STD
from deploynas.device import StopRule, measure, open_device
from deploynas.nn.adapt import read
from deploynas.nn.adapt.sources import load_module
from deploynas.search import Budget
from deploynas.spaces import Resolution
from deploynas.workflows.adapting import Adapted, AdaptPlan, adapt, prepared
from deploynas.workflows.target import Tell

NETWORKS = (
    "torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b0", "torchvision:mnasnet1_0", "torchvision:shufflenet_v2_x1_0",
    "torchvision:regnet_y_400mf", "timm:efficientnet_lite0", "timm:mobilenetv4_conv_small",
    "timm:ghostnet_100",
)  # fmt: skip
SIDE, LITE_SIDE, LITE_IMAGES, RESNET_IMAGES = 128, 96, 4_000, 10_000
AGAIN = StopRule(precision=0.005, min_sessions=6, max_sessions=12, rounds=8, session_seconds=8.0)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=("budget", "resnet20", "lite0"), required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--share", type=float, default=0.6, help="of the original's latency")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--importance", default="taylor")
    parser.add_argument("--distil", action="store_true")
    parser.add_argument("--journal", type=Path, help="keeps what is done; goes on from there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    parts = {"budget": budget, "resnet20": resnet20, "lite0": lite0}
    rows = parts[options.part](options)
    if options.json:
        print(json.dumps(rows, indent=1))


def budget(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of part ``budget``."""
    done = [] if not options.journal or not options.journal.exists() else [
        json.loads(line) for line in options.journal.read_text().splitlines()
    ]  # fmt: skip
    for name in NETWORKS:
        if options.only not in name or any(row["network"] == name for row in done):
            continue
        try:
            row = one_budget(name, options)
        except Exception as error:  # the others are worth having
            row = {"network": name, "error": f"{type(error).__name__}: {error}"[:300]}
        done.append(row)
        if options.journal:
            with options.journal.open("a") as out:
                out.write(json.dumps(row) + "\n")
    for row in done:
        tell(options, row)
    found = [row for row in done if "error" not in row]
    if found:
        ratios = np.array([row["again_over_asked"] for row in found])
        errors = np.array([abs(row["measured_over_predicted"] - 1) for row in found])
        kept = (ratios >= 0.97) & (ratios <= 1)
        tell(options, {
            "networks": len(found), "within_0.97_1.00": int(kept.sum()),
            "least": float(ratios.min()), "most": float(ratios.max()),
            "prediction_error_mean": float(errors.mean()), "most_error": float(errors.max()),
        })  # fmt: skip
    return done


def one_budget(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One network at a share of its own latency."""
    started = time.monotonic()
    module = load_module(name)
    reading = read(
        module, torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    )
    device = open_device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original.onnx"
        original.write_bytes(file_of(module, reading.example))
        own = measure(device, {"original": original}, AGAIN)["original"].estimate().median
        limit = options.share * own
        plan = AdaptPlan(
            name, Budget(latency_ms=limit), options.evaluations or 60, "magnitude", finetunes=False
        )
        result = adapt(
            module, reading, noise(1_000), device, plan, Path(folder) / "run",
            Path(folder) / "export", heard(options),
        )  # fmt: skip
        found = Path(folder) / "export" / "model.onnx"
        again = measure(device, {"original": original, "found": found}, AGAIN)
    both = {key: one.estimate() for key, one in again.items()}
    ratio = both["found"].median / both["original"].median
    last = result.rows[-1]
    assert result.predicted_ms is not None
    return {
        "network": name, "original_ms": own, "asked_ms": limit, "found_ms": last.latency_ms,
        "found_over_asked": last.latency_ms / limit, "again_over_asked": ratio / options.share,
        "half_width": both["found"].half_width + both["original"].half_width,
        "measured_over_predicted": last.latency_ms / result.predicted_ms,
        "stated_error": result.prediction_error,
        "macs_left": last.macs / result.rows[0].macs, "judged": result.num_evaluations,
        "measured": result.num_measured, "seconds": time.monotonic() - started,
    }  # fmt: skip


def resnet20(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of part ``resnet20``."""
    if options.weights:
        os.environ["DEPLOYNAS_RESNET20"] = str(options.weights)
    source = f"{Path(__file__).with_name('resnet20.py')}:network"
    dataset = load_dataset(options.data, max_size=32).with_fewer(RESNET_IMAGES)
    return trained(source, Resolution(32, 32), dataset, options)


def lite0(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of part ``lite0``."""
    source = f"{Path(__file__).with_name('lite0.py')}:network"
    dataset = load_dataset(options.data, max_size=32).with_fewer(LITE_IMAGES)
    dataset = dataset.normalised_by((127 / 255,) * 3, (128 / 255,) * 3)
    return trained(source, Resolution(LITE_SIDE, LITE_SIDE), dataset, options)


def trained(
    source: str, resolution: Resolution, dataset: ImageDataset, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A trained network at a share of its latency, a row a network and seed."""
    rows = []
    device = open_device("cpu")
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            module = load_module(source)
            plan = AdaptPlan(
                source, Budget(), options.evaluations or 200, options.importance,
                distils=options.distil, epochs=options.epochs, beside=True, seed=seed,
            )  # fmt: skip
            reading = prepared(module, resolution, dataset, [], plan, run, heard(options))
            path = Path(folder) / "original.onnx"
            path.write_bytes(file_of(module, reading.example))
            own = measure(device, {"original": path}, AGAIN)["original"].estimate().median
            plan = AdaptPlan(**{**vars(plan), "budget": Budget(latency_ms=options.share * own)})
            before, started = processor_seconds(), time.monotonic()
            result = adapt(
                module, reading, dataset, device, plan, run, Path(folder) / "export",
                heard(options),
            )  # fmt: skip
            rows += rows_of(result, seed, processor_seconds() - before, time.monotonic() - started)
    for row in rows:
        tell(options, row)
    return rows


def rows_of(result: Adapted, seed: int, cpu_s: float, wall_s: float) -> list[dict[str, Any]]:
    """Its networks, then what it took."""
    limit, predicted = result.budget.latency_ms, result.predicted_ms
    assert limit is not None
    assert predicted is not None
    networks = [
        {
            "seed": seed, "network": row.name, "accuracy": row.accuracy,
            "over_asked": row.latency_ms / limit, "macs": row.macs, "params": row.params,
        }
        for row in result.rows
    ]  # fmt: skip
    return [*networks, {
        "seed": seed, "judged": result.num_evaluations, "measured": result.num_measured,
        "measured_over_predicted": result.rows[-1].latency_ms / predicted,
        "stated_error": result.prediction_error, "test": result.test_accuracy,
        "processor_s": cpu_s, "wall_s": wall_s, **result.seconds,
    }]  # fmt: skip


def file_of(module: torch.nn.Module, example: torch.Tensor) -> bytes:
    """The original's file."""
    from deploynas.nn.adapt.files import onnx_bytes

    return onnx_bytes(module, example)


def noise(num_classes: int) -> ImageDataset:
    """An image a class, for networks of random weights."""
    rng = np.random.default_rng(0)
    parts = [
        Split(rng.integers(0, 256, (n, SIDE, SIDE, 3), np.uint8), np.arange(n) % num_classes)
        for n in (256, 64, 64)
    ]
    return ImageDataset(
        name="noise", classes=tuple(map(str, range(num_classes))), channels=3,
        size=Resolution(SIDE, SIDE), train=parts[0], val=parts[1], test=parts[2], mean=MEAN,
        std=STD, fingerprint="noise", warnings=(), source="noise",
    )  # fmt: skip


def processor_seconds() -> float:
    """Of this process and its children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def heard(options: argparse.Namespace) -> Tell:
    """Progress on standard error."""
    return Tell(note=lambda text: print(text, file=sys.stderr, flush=True))


def tell(options: argparse.Namespace, row: dict[str, Any]) -> None:
    """A row for people."""
    if not options.json:
        shown = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()]
        print("  ".join(shown), flush=True)


if __name__ == "__main__":
    main()
