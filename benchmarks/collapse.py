"""Does DARTS collapse to skip connections, and do the countermeasures stop it?

python benchmarks/collapse.py --data DIR [--images N] [--epochs N] [--seeds N] [--workers N]
                              [--space S] [--resolution R] [--json] [--quick]

Every way searches the same cells with the same seeds and without a budget, on few images for many
epochs: what overfits is what collapses (Zela et al. 2020, section 4). What is derived is trained
from scratch on more images by one recipe, and so are as many random cells. Printed: skip
connections in the normal cell, seed by seed, and test accuracies. What was done is kept in
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
from proxyless import PROFILES, Stopwatch, difference, interval

import deploynas as dn
from deploynas.artifacts import Record
from deploynas.data import ImageDataset, load_dataset
from deploynas.device import open_device
from deploynas.profile import LatencyModel, profile_space
from deploynas.search import Problem, cells, darts
from deploynas.search.strategies.darts import STRATEGY as DARTS
from deploynas.spaces import CellSpace
from deploynas.spaces.genotypes import genotype
from deploynas.train import Recipe
from deploynas.workflows.recipes import for_data
from deploynas.workflows.trainings import Trained, key_of, train_alone

RUNS = Path(__file__).parent / "runs" / "collapse"
SPACE = "darts-small:channels=8,cells=5,nodes=4,operations=skip_connect+sep_conv_3x3"
PLAIN, LIMITED = "plain", "at most 2 skips"
SEARCHES: dict[str, dict[str, object]] = {
    PLAIN: {},
    "pruning": {"prune": 0.5},
    "fair gates": {"gate": "sigmoid"},
}
WAYS = (PLAIN, LIMITED, "pruning", "fair gates")  # the limit acts when cells are derived


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2_000, help="of a search")
    parser.add_argument("--epochs", type=float, default=80.0, help="of a search")
    parser.add_argument("--standalone-images", type=int, default=5_000)
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
    everything = load_dataset(options.data, max_size=options.resolution)
    dataset = everything.with_fewer(options.images)
    larger = everything.with_fewer(options.standalone_images)
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
        "search_images": len(dataset.train),
        "search_epochs": options.epochs,
        "standalone_images": len(larger.train),
        "standalone_epochs": options.standalone_epochs,
    }
    tests: dict[str, list[float]] = {}
    with ProcessPoolExecutor(
        options.workers, get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        searches = {
            (way, seed): pool.submit(searched, model, dataset, options.epochs, way, seed)
            for way in SEARCHES
            for seed in seeds
        }
        found = {key: one.result() for key, one in searches.items()}
        archs = {key: np.array(one.arch, np.uint8) for key, one in found.items()}
        archs |= {(LIMITED, s): np.array(found[PLAIN, s].limited, np.uint8) for s in seeds}
        archs |= {("random", seed): drawn[seed] for seed in seeds}
        trained = {
            key: pool.submit(
                standalone, space, arch, larger, recipe.model_copy(update={"seed": key[1]})
            )
            for key, arch in archs.items()
        }
        for way in (*WAYS, "random"):
            skips = [space.num_skips(archs[way, seed]) for seed in seeds]
            tests[way] = [trained[way, seed].result() for seed in seeds]
            document[f"{way}: skips"] = " ".join(map(str, skips))
            document[f"{way}: test accuracy"] = interval(tests[way])
            document[f"{way}: params"] = " ".join(
                f"{int(space.params(archs[way, seed][None])[0]) / 1e3:.0f}k" for seed in seeds
            )
    for way in WAYS:
        document[f"{way}: over random"] = difference(tests[way], tests["random"])
    for way in SEARCHES:
        document[f"{way}: skips over time"] = " ".join(map(str, found[way, 0].over_time[::4]))
    for way in WAYS:
        document[f"{way}: first genotype"] = genotype(space.decode(archs[way, 0][None])[0])
    document["search_processor_seconds"] = float(np.mean([one.seconds for one in found.values()]))
    document["minutes_now"] = (time.monotonic() - started) / 60
    return document


class Found(Record):
    """What a search derived.

    Attributes:
        arch, limited: Cells, and those of at most two skips.
        seconds: Of the processor.
        over_time: Skips of the normal cell that would have been derived on the way.
    """

    arch: tuple[int, ...]
    limited: tuple[int, ...]
    seconds: float
    over_time: tuple[int, ...]


def searched(
    model: LatencyModel, dataset: ImageDataset, epochs: float, way: str, seed: int
) -> Found:
    """What is derived, found now or before."""
    options = DARTS.options(**SEARCHES[way])
    recipe = for_data(DARTS.recipe(options, seed), dataset, epochs)
    space = model.space
    assert isinstance(space, CellSpace)
    text = f"{space.spec} {dataset.fingerprint} {recipe.model_dump_json()}"
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    RUNS.mkdir(parents=True, exist_ok=True)
    file = RUNS / f"search-{key}.json"
    if not file.exists():
        watch = Stopwatch(RUNS / f"search-{key}.seconds")
        torch.manual_seed(seed)
        learner, problem = darts.CellsLearner(space, recipe), Problem(model)
        network = learner.network
        learned = learner.learn(
            dataset, problem, checkpoint=RUNS / f"search-{key}.safetensors",
            on_progress=lambda state: watch.tick(),
        )  # fmt: skip
        over_time = [
            cells.derive(network, np.array(point.probabilities), problem)
            for point in learned.history
        ]
        limited = cells.derive(network, np.stack(learned.probabilities), problem, 2)
        assert limited is not None
        record = Found(
            arch=tuple(learned.decision.arch.tolist()), limited=tuple(limited[0].tolist()),
            seconds=watch.seconds,
            over_time=tuple(space.num_skips(one[0]) for one in over_time if one),
        )  # fmt: skip
        file.write_text(record.model_dump_json())
        (RUNS / f"search-{key}.safetensors").unlink(missing_ok=True)
    return Found.model_validate_json(file.read_text())


def standalone(space: CellSpace, arch: np.ndarray, dataset: ImageDataset, recipe: Recipe) -> float:
    """Test accuracy after training from scratch, now or before."""
    nodes = space.layers(arch)
    path = RUNS / f"alone-{key_of(nodes, dataset, recipe)}.json"
    if not path.exists():
        train_alone(nodes, dataset, recipe, path)
    return Trained.read(path).test


if __name__ == "__main__":
    main()
