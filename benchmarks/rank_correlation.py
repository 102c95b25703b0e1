"""Does the supernet rank networks as training each of them alone does?

python benchmarks/rank_correlation.py --data DIR [--json] [--quick] [--networks 24]
    [--supernet-epochs 30] [--standalone-epochs 10] [--images N] [--minutes M] [--workers 2]
    [--largest SHARE]
--data is an image folder, for example CIFAR-10's. Networks of mobile-small at the data's own
side are spread over the range of MACs. Each is trained twice from scratch by one recipe, with two
seeds, and judged by the supernet's weights (batch norms recalibrated); all on the same validation
images. *ceiling* is Kendall's tau between the two seeds: what noise allows. Every training is
kept in benchmarks/runs/, so that a run that was stopped goes on; --minutes stops it in time and
prints what there is. --images trains on so many images, and the table says so. --workers trains so
many networks at a time, each on its share of the cores: small networks do not fill several.
--largest leaves out networks of more MACs than that share of the range, in logarithms.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from deploynas.data import ImageDataset, load_dataset, space_for
from deploynas.nn import Supernet, build
from deploynas.profile.latency_model import kendall_tau
from deploynas.spaces import Archs, MobileSpace
from deploynas.train import (
    Batches,
    Recipe,
    SupernetEvaluator,
    SupernetRecipe,
    accuracy,
    load_weights,
    pick_device,
    save_weights,
    train_network,
    train_supernet,
)

SEEDS = (0, 1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="6 networks, 1 epoch")
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--supernet-epochs", type=float, default=30.0)
    parser.add_argument("--standalone-epochs", type=float, default=10.0)
    parser.add_argument("--images", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=np.inf)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--largest", type=float, default=1.0)
    options = parser.parse_args()
    if options.quick:
        options.networks, options.supernet_epochs, options.standalone_epochs = 6, 1.0, 1.0
    started = time.monotonic()
    dataset = load_dataset(options.data).with_fewer(options.images)
    space = space_for("mobile-small", dataset, [dataset.size])
    recipe = Recipe(epochs=options.standalone_epochs, batch_size=64)
    supernet_recipe = SupernetRecipe(epochs=options.supernet_epochs)
    archs = spread(space, options.networks, options.largest)
    folder = Path(__file__).parent / "runs" / "rank_correlation"
    supernet = trained_supernet(space, dataset, supernet_recipe, folder)
    inherited = SupernetEvaluator(supernet, dataset).final(archs)
    alone = np.full((len(archs), len(SEEDS)), np.nan)
    # every second network first: a run that ends early still spans the range
    order = [*range(0, len(archs), 2), *range(1, len(archs), 2)]
    threads = max(1, torch.get_num_threads() // options.workers)
    tasks = [(i, j) for i in order for j in range(len(SEEDS))]
    with ProcessPoolExecutor(
        options.workers, get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        for start in range(0, len(tasks), options.workers):
            if time.monotonic() - started > options.minutes * 60:
                break
            part = tasks[start : start + options.workers]
            running = [
                pool.submit(
                    standalone, space, archs[i], dataset,
                    recipe.model_copy(update={"seed": SEEDS[j]}), folder,
                )
                for i, j in part
            ]  # fmt: skip
            for (i, j), one in zip(part, running, strict=True):
                alone[i, j] = one.result()
    done = ~np.isnan(alone).any(axis=1)
    if done.sum() < 4:
        raise SystemExit("fewer than four networks are trained yet: run it again, it goes on")
    document = table(inherited[done], alone[done], space.macs(archs[done]))
    document |= {
        "train_images": len(dataset.train),
        "supernet_epochs": options.supernet_epochs,
        "standalone_epochs": options.standalone_epochs,
        "minutes_now": (time.monotonic() - started) / 60,
    }
    if options.json:
        print(json.dumps(document))
        return
    for key, value in document.items():
        print(f"{key:22} {value:.4f}" if isinstance(value, float) else f"{key:22} {value}")


def table(inherited: np.ndarray, alone: np.ndarray, macs: np.ndarray) -> dict[str, object]:
    """Rank correlations with 95 % bootstrap intervals over the networks."""

    def taus(rows: np.ndarray) -> tuple[float, float]:
        mean = alone[rows].mean(axis=1)
        return kendall_tau(inherited[rows], mean), kendall_tau(*alone[rows].T)

    rng = np.random.default_rng(0)
    everything = np.arange(len(inherited))
    draws = [taus(rng.integers(0, len(inherited), len(inherited))) for _ in range(1_000)]
    tau, ceiling = taus(everything)
    low, high = np.quantile([d[0] for d in draws], [0.025, 0.975])
    return {
        "networks": len(inherited),
        "macs_span": float(macs.max() / macs.min()),
        "tau": tau,
        "tau_low": float(low),
        "tau_high": float(high),
        "ceiling": ceiling,
        "tau_over_ceiling": tau / ceiling if ceiling else 0.0,
        "standalone_accuracy": float(alone.mean()),
        "seed_difference": float(np.abs(alone[:, 0] - alone[:, 1]).mean()),
        "inherited_minus_standalone": float((inherited - alone.mean(axis=1)).mean()),
    }


def spread(space: MobileSpace, num: int, largest: float = 1.0) -> Archs:
    """Random architectures, evenly spaced in the logarithm of MACs."""
    drawn = space.sample_spread(2_000, np.random.default_rng(40_001))
    logs = np.log(space.macs(drawn))
    low, high = np.quantile(logs, [0.01, 0.99])
    wanted = np.linspace(low, low + largest * (high - low), num)
    return np.stack([drawn[np.abs(logs - value).argmin()] for value in wanted])


def trained_supernet(
    space: MobileSpace, dataset: ImageDataset, recipe: SupernetRecipe, folder: Path
) -> Supernet:
    """The supernet: trained now, or before."""
    torch.manual_seed(recipe.seed)
    supernet = Supernet(space).to(pick_device())
    path = folder / f"supernet-{key(space.spec, dataset, recipe)}.safetensors"
    if path.exists():
        load_weights(path, supernet)
    else:
        checkpoint = path.with_suffix(".checkpoint")
        train_supernet(supernet, dataset, recipe, checkpoint=checkpoint)
        save_weights(path, supernet)
        checkpoint.unlink(missing_ok=True)
    return supernet.to(memory_format=torch.channels_last)


def standalone(
    space: MobileSpace, arch: Archs, dataset: ImageDataset, recipe: Recipe, folder: Path
) -> float:
    """Validation accuracy of one network trained from scratch: now, or before."""
    path = folder / f"alone-{key(arch.tolist(), dataset, recipe)}.json"
    if not path.exists():
        torch.manual_seed(recipe.seed)
        network = build(space, arch).to(pick_device())
        checkpoint = path.with_suffix(".checkpoint")
        train_network(network, dataset, recipe, checkpoint=checkpoint)
        batches = Batches(dataset, dataset.val, pick_device())
        path.write_text(json.dumps({"accuracy": accuracy(network, batches, dataset.size)}))
        checkpoint.unlink(missing_ok=True)
    return float(json.loads(path.read_text())["accuracy"])


def key(what: object, dataset: ImageDataset, recipe: Recipe) -> str:
    """Name of a training's file."""
    text = f"{what} {dataset.fingerprint} {recipe.model_dump_json()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
