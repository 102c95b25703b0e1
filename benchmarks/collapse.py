"""Does DARTS collapse to skip connections, and do the countermeasures stop it?

python benchmarks/collapse.py --data DIR [--images N] [--epochs N] [--seeds N] [--workers N]
                              [--space S] [--resolution R] [--json] [--quick]

Every way searches the same cells with the same seeds and without a budget; what is derived is
trained from scratch by one recipe, and so are as many random cells. Printed: skip connections in
the normal cell, seed by seed, and test accuracies. What was done is kept in
benchmarks/runs/collapse: a run that was stopped goes on. Searches and trainings run --workers at a
time, each on its share of the cores.
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
from proxyless import PROFILES, Stopwatch, _difference, _interval

import deploynas as dn
from deploynas.data import ImageDataset, load_dataset
from deploynas.device import open_device
from deploynas.nn import MixedCells
from deploynas.profile import LatencyModel, profile_space
from deploynas.search import Budget, cells, darts
from deploynas.spaces import CellSpace
from deploynas.spaces.cells import genotype
from deploynas.train import Recipe
from deploynas.workflows.gradient import darts_recipe_for
from deploynas.workflows.trainings import Trained, key_of, train_alone

RUNS = Path(__file__).parent / "runs" / "collapse"
SPACE = "darts-small:channels=8,cells=5,nodes=4,operations=skip_connect+sep_conv_3x3"
WAYS: dict[str, dict[str, object]] = {
    "plain": {},
    "fair gates": {"gate": "sigmoid"},
    "at most 2 skips": {"max_skips": 2},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--epochs", type=float, default=40.0, help="of a search")
    parser.add_argument("--standalone-epochs", type=float, default=16.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--space", default=SPACE)
    parser.add_argument("--resolution", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs, options.standalone_epochs = 1, 1.0, 1.0
    document = collapse(options)
    if options.json:
        print(json.dumps(document))
        return
    for key, value in document.items():
        print(f"{key:28} {value:.4g}" if isinstance(value, float) else f"{key:28} {value}")


def collapse(options: argparse.Namespace) -> dict[str, object]:
    """Skips and accuracies of each way, and of random cells."""
    started = time.monotonic()
    dataset = load_dataset(options.data, max_size=options.resolution).with_fewer(options.images)
    space = dn.space(options.space, dataset.num_classes, dataset.channels, [options.resolution])
    assert isinstance(space, CellSpace)
    recipe = Recipe(epochs=options.standalone_epochs, batch_size=64)
    profile, _ = profile_space(space, open_device("cpu", 1), PROFILES / "collapse.json")
    model = LatencyModel(space, profile)
    threads = max(1, torch.get_num_threads() // options.workers)
    seeds = range(options.seeds)
    drawn = space.sample(options.seeds, np.random.default_rng(0))
    document: dict[str, object] = {
        "space": options.space,
        "train_images": len(dataset.train),
        "search_epochs": options.epochs,
        "standalone_epochs": options.standalone_epochs,
    }
    tests: dict[str, list[float]] = {}
    with ProcessPoolExecutor(
        options.workers, get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        searches = {
            (way, seed): pool.submit(searched, model, dataset, options.epochs, way, seed)
            for seed in seeds
            for way in WAYS
        }
        archs = {key: np.array(one.result()[0], np.uint8) for key, one in searches.items()}
        archs |= {("random", seed): drawn[seed] for seed in seeds}
        trained = {
            key: pool.submit(
                standalone, space, arch, dataset, recipe.model_copy(update={"seed": key[1]})
            )
            for key, arch in archs.items()
        }
        for way in (*WAYS, "random"):
            skips = [cells.num_skips(space, archs[way, seed]) for seed in seeds]
            tests[way] = [trained[way, seed].result() for seed in seeds]
            document[f"{way}: skips"] = " ".join(map(str, skips))
            document[f"{way}: test accuracy"] = _interval(tests[way])
            document[f"{way}: params"] = " ".join(
                f"{int(space.params(archs[way, seed][None])[0]) / 1e3:.0f}k" for seed in seeds
            )
    for way in WAYS:
        document[f"{way}: over random"] = _difference(tests[way], tests["random"])
    for way in WAYS:
        over_time = searches[way, 0].result()[2]
        document[f"{way}: skips over time"] = " ".join(map(str, over_time[::6]))
        document[f"{way}: first genotype"] = genotype(space.decode(archs[way, 0][None])[0])
    seconds = np.mean([searches[key].result()[1] for key in searches])
    document["search_processor_seconds"] = float(seconds)
    document["minutes_now"] = (time.monotonic() - started) / 60
    return document


def searched(
    model: LatencyModel, dataset: ImageDataset, epochs: float, way: str, seed: int
) -> tuple[list[int], float, list[int]]:
    """The derived cells, found now or before, their search's seconds, and skips over time."""
    recipe = darts_recipe_for(dataset, epochs, seed, WAYS[way])
    space = model.space
    assert isinstance(space, CellSpace)
    text = f"{space.spec} {dataset.fingerprint} {recipe.model_dump_json()}"
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    RUNS.mkdir(parents=True, exist_ok=True)
    file = RUNS / f"search-{key}.json"
    if not file.exists():
        watch = Stopwatch(RUNS / f"search-{key}.seconds")
        torch.manual_seed(seed)
        network = MixedCells(space)
        learned = darts.learn(
            network, dataset, model, Budget(), recipe,
            checkpoint=RUNS / f"search-{key}.safetensors", on_progress=lambda state: watch.tick(),
        )  # fmt: skip
        arch = [int(v) for v in learned.decision.arch]
        over_time = [
            cells.derive(network, np.array(point.probabilities), model, Budget())
            for point in learned.history
        ]
        skips = [cells.num_skips(space, found[0]) for found in over_time if found is not None]
        file.write_text(json.dumps({"arch": arch, "seconds": watch.seconds, "skips": skips}))
        (RUNS / f"search-{key}.safetensors").unlink(missing_ok=True)
    kept = json.loads(file.read_text())
    return kept["arch"], kept["seconds"], kept["skips"]


def standalone(space: CellSpace, arch: np.ndarray, dataset: ImageDataset, recipe: Recipe) -> float:
    """Test accuracy after training from scratch, now or before."""
    nodes = space.layers(arch)
    path = RUNS / f"alone-{key_of(nodes, dataset, recipe)}.json"
    if not path.exists():
        train_alone(nodes, dataset, recipe, path)
    return Trained.read(path).test


if __name__ == "__main__":
    main()
