"""How busy a GPU is: one prepared script, for a machine without network.

python benchmarks/gpu.py --part speed [--data DIR] [--seconds N] [--rows a,b] [--json] [--quick]

``speed``: images a second of a supernet's training, four subnets a step (largest, smallest and two
random ones), over plain torch that trains the same kind of four static networks on resident data;
what each measure brings; kernel time over wall time; the first pass of a subnet over its second.
``accuracy``: the largest subnet after ten epochs, at each batch size; needs ``--data``.
``resnet``: ResNet-20 by this package's training loop on all training images; its weights go to
``--output``. ``cifar``: the chain of ``cifar.toml``: supernet, search at half of the largest's
MACs, training of what was chosen, test accuracy and minutes. Both need ``--data``.
A row is written as soon as it is there, so that a run that is cut off keeps what it has. Without
``--data`` the images are noise. ``--quick`` is a small form for a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from resnet20 import ResNet20
from torch import nn

from deploynas import spaces
from deploynas.data import ImageDataset, Split, build_dataset, load_dataset
from deploynas.nn import Lender, Supernet, build
from deploynas.search.budget import Budget
from deploynas.search.problem import Problem
from deploynas.search.run import explore
from deploynas.search.strategies.evolution import STRATEGY as EVOLUTION
from deploynas.search.strategy import Effort
from deploynas.train import (
    SupernetEvaluator,
    SupernetRecipe,
    pick_device,
    train_network,
    train_supernet,
)
from deploynas.train.batches import Batches
from deploynas.train.evaluate import accuracy as accuracy_of
from deploynas.train.loop import Recipe, StepImages, Trainee, run_training
from deploynas.train.task import task_of

CHUNK = 10  # steps between two looks at the clock
DEVICE = pick_device()
SIDE = 32
BASE_BATCH, BASE_RATE = 128, 0.2


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=PARTS, default="speed")
    parser.add_argument("--data", type=Path, help="image folder; noise without it")
    parser.add_argument("--seconds", type=float, default=6.0, help="of every row")
    parser.add_argument("--rows", default="", help="names, or beginnings of them")
    parser.add_argument("--space", default="mobile-small")
    parser.add_argument("--batch-sizes", default="", help="such as 128,512,1024")
    parser.add_argument("--epochs", type=float, help="of part resnet, or of each half of cifar")
    parser.add_argument("--seeds", type=int, default=1, help="of part resnet")
    parser.add_argument("--output", type=Path, help="folder for weights")
    parser.add_argument("--json", action="store_true", help="lines of JSON alone")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    wanted = tuple(name for name in options.rows.split(",") if name)
    started = time.perf_counter()
    results: dict[str, dict[str, object]] = {}
    for name, row in PARTS[options.part](options, results):
        if wanted and not name.startswith(wanted):
            continue
        before = time.perf_counter()
        try:
            found = row()
        except Exception as error:  # the other rows are worth having
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        results[name] = found
        seconds = {
            "seconds": round(time.perf_counter() - before, 1),
            "at": round(time.perf_counter() - started, 1),
        }
        if options.json:
            print(json.dumps({"row": name, **found, **seconds}), flush=True)
        else:
            text = "  ".join(f"{k} {_short(v)}" for k, v in {**found, **seconds}.items())
            print(f"{name:34} {text}", flush=True)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


Row = tuple[str, Callable[[], dict[str, object]]]


def speed(options: argparse.Namespace, results: dict[str, dict[str, object]]) -> Iterator[Row]:
    """The rows of part ``speed``."""
    dataset = data(options)
    space = spaces.space(options.space, dataset.num_classes, dataset.channels, [SIDE])
    sizes = [int(n) for n in options.batch_sizes.split(",") if n]
    sizes = sizes or ([16, 32] if options.quick else [128, 512, 1024, 2048])
    middle, seconds = sizes[(len(sizes) - 1) // 2], 1.0 if options.quick else options.seconds

    def best(who: str, size: int) -> float:
        rows = (results.get(f"{who} {amp} {size}", {}) for amp in ("off", "bf16"))
        return max(float(row.get("images_per_second", 0.0)) for row in rows)  # type: ignore[arg-type]

    def ratio(size: int) -> dict[str, object]:
        return {"over_plain": best("ours", size) / (best("plain", size) or np.inf)}

    yield "machine", machine
    yield f"first seen {middle}", lambda: first_seen(space, dataset, middle, options.quick)
    for size in sizes:
        for amp in ("off", "bf16"):
            yield f"plain {amp} {size}", lambda s=size, a=amp: plain(space, dataset, s, a, seconds)
            yield f"ours {amp} {size}", lambda s=size, a=amp: ours(space, dataset, s, seconds, a)
        yield f"ratio {size}", lambda s=size: ratio(s)
    yield f"busy {middle}", lambda: busy(space, dataset, middle, seconds)
    three = spaces.space(options.space, dataset.num_classes, dataset.channels, [24, 28, SIDE])
    yield f"ours three-sides {middle}", lambda: ours(three, dataset, middle, 2 * seconds)
    yield f"largest plain {middle}", lambda: plain(space, dataset, middle, "off", seconds, num=1)
    yield (
        f"largest contiguous {middle}",
        lambda: plain(
            space, dataset, middle, "off", seconds, num=1, layout=torch.contiguous_format
        ),
    )
    yield (
        f"largest compiled {middle}",
        lambda: plain(space, dataset, middle, "off", seconds, num=1, compiled=True),
    )


def accuracy(options: argparse.Namespace, results: dict[str, dict[str, object]]) -> Iterator[Row]:
    """The rows of part ``accuracy``: the largest subnet after a short training."""
    dataset = data(options)
    sizes = [int(n) for n in options.batch_sizes.split(",") if n] or [512, 1024, 128]
    yield "machine", machine
    for size in sizes:
        for rule in ("linear", "root"):
            if size != BASE_BATCH or rule == "linear":
                yield f"{rule} {size}", lambda s=size, r=rule: learnt(options, dataset, s, r)


def resnet(options: argparse.Namespace, results: dict[str, dict[str, object]]) -> Iterator[Row]:
    """The rows of part ``resnet``."""
    dataset = data(options)
    yield "machine", machine
    for seed in range(options.seeds):
        yield f"resnet20 {seed}", lambda s=seed: resnet20(options, dataset, s)


def cifar(options: argparse.Namespace, results: dict[str, dict[str, object]]) -> Iterator[Row]:
    """The rows of part ``cifar``, each of which goes on from the one before."""
    dataset = data(options)
    chain = _Chain(options, dataset)
    yield "machine", machine
    yield "supernet", chain.train
    yield "search", chain.search
    yield "chosen", chain.retrain
    yield "in all", chain.total


PARTS = {"speed": speed, "accuracy": accuracy, "resnet": resnet, "cifar": cifar}


def resnet20(options: argparse.Namespace, dataset: ImageDataset, seed: int) -> dict[str, object]:
    """Test accuracy after a training on all images but the test split's."""
    whole = build_dataset(
        name=dataset.name, classes=dataset.classes, val=dataset.val, test=dataset.test,
        train=Split(
            np.concatenate([dataset.train.images, dataset.val.images]),
            np.concatenate([dataset.train.labels, dataset.val.labels]),
        ),
        warnings=(), source=dataset.source,
    )  # fmt: skip
    epochs = options.epochs or (0.1 if options.quick else 120.0)
    recipe = Recipe(
        epochs=epochs, batch_size=256, learning_rate=0.2, weight_decay=5e-4, label_smoothing=0.0,
        augment_from=0, seed=seed,
    )  # fmt: skip
    torch.manual_seed(seed)
    network, task = ResNet20().to(DEVICE), task_of(whole)

    def accumulate(images: StepImages) -> torch.Tensor:
        x = images.at(SIDE)
        loss = task.loss(network(x), images.wanted(x, 10))
        images.scaled(loss).backward()
        return loss

    started = time.perf_counter()
    run_training(
        Trainee(network, "resnet20"), whole, recipe, accumulate,
        checkpoint=None, on_progress=lambda state: None,
    )  # fmt: skip
    synchronise()
    seconds = time.perf_counter() - started
    network.eval()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
        torch.save(weights, options.output / f"resnet20-{seed}.pt")
    return {
        "test": accuracy_of(network, Batches(whole, whole.test, DEVICE), SIDE),
        "epochs": epochs, "training_seconds": seconds,
        "images_per_second": epochs * len(whole.train) / seconds,
    }  # fmt: skip


class _Chain:
    """Supernet, search, training of what was chosen."""

    def __init__(self, options: argparse.Namespace, dataset: ImageDataset) -> None:
        self._dataset, self._quick = dataset, options.quick
        self._epochs = options.epochs
        table = Path(__file__).with_name("cifar.toml")
        self._space = spaces.space(str(table), dataset.num_classes, dataset.channels, [SIDE])
        torch.manual_seed(0)
        self._supernet = Supernet(self._space).to(DEVICE)
        self._evaluator = SupernetEvaluator(self._supernet, dataset)
        self._started = time.perf_counter()

    def train(self) -> dict[str, object]:
        """The supernet."""
        epochs = self._epochs or 12.0
        recipe = SupernetRecipe(
            epochs=0.1 if self._quick else epochs, batch_size=512, learning_rate=0.4, num_random=2,
            weight_decay=1e-4, augment_from=0,
        )  # fmt: skip
        train_supernet(self._supernet, self._dataset, recipe)
        ends = {"largest": self._space.largest(), "smallest": self._space.smallest()}
        return {
            **{name: self._evaluator.accuracy(rows[0]) for name, rows in ends.items()},
            **{f"{name}_macs": int(self._space.macs(rows)[0]) for name, rows in ends.items()},
        }

    def search(self) -> dict[str, object]:
        """Evolution on inherited weights."""
        limit = float(self._space.macs(self._space.largest())[0]) / 2
        problem = Problem(argparse.Namespace(space=self._space), Budget(macs=limit))  # type: ignore[arg-type]
        rng, effort = np.random.default_rng(0), Effort(8 if self._quick else 96)

        def scores(archs: np.ndarray) -> np.ndarray:
            return np.array(list(self._evaluator.quick(archs)))

        history = explore(EVOLUTION, EVOLUTION.options(), problem, scores, rng, effort)
        self._chosen = history.archs[history.best(1)[0]]
        return {
            "networks": len(history.archs),
            "validation": self._evaluator.accuracy(self._chosen),
            "macs": int(self._space.macs(self._chosen[None])[0]),
        }

    def retrain(self) -> dict[str, object]:
        """The chosen network, on from the supernet's weights."""
        epochs = 3 * (self._epochs or 12.0)
        recipe = Recipe(
            epochs=0.1 if self._quick else epochs, batch_size=512, learning_rate=0.3,
            weight_decay=5e-4, augment_from=0, erased=0.25, label_smoothing=0.1,
        )  # fmt: skip
        network = self._evaluator.extract(self._chosen)
        train_network(network, self._dataset, recipe)
        test = Batches(self._dataset, self._dataset.test, DEVICE)
        return {"epochs": recipe.epochs, "test": accuracy_of(network, test, SIDE)}

    def total(self) -> dict[str, object]:
        """Minutes from the first step to the last figure, the data being read."""
        return {"minutes": (time.perf_counter() - self._started) / 60}


def learnt(
    options: argparse.Namespace, dataset: ImageDataset, size: int, rule: str
) -> dict[str, object]:
    """Validation accuracy of both ends after training, at a batch size and its rate."""
    space = spaces.space(options.space, dataset.num_classes, dataset.channels, [SIDE])
    factor = size / BASE_BATCH
    rate = BASE_RATE * (factor if rule == "linear" else factor**0.5)
    epochs = 0.1 if options.quick else 10.0
    recipe = SupernetRecipe(epochs=epochs, batch_size=size, learning_rate=rate, num_random=2)
    torch.manual_seed(0)
    supernet = Supernet(space).to(DEVICE)
    started = time.perf_counter()
    train_supernet(supernet, dataset, recipe)
    synchronise()
    seconds = time.perf_counter() - started
    evaluator = SupernetEvaluator(supernet, dataset)
    largest, smallest = (evaluator.accuracy(a[0]) for a in (space.largest(), space.smallest()))
    drawn = space.sample(4, np.random.default_rng(3))
    return {
        "largest": largest, "smallest": smallest, "learning_rate": rate,
        "random": float(np.mean([evaluator.accuracy(arch) for arch in drawn])),
        "images_per_second": epochs * len(dataset.train) / seconds, "training_seconds": seconds,
    }  # fmt: skip


def machine() -> dict[str, object]:
    """What this runs on."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor()
    return {
        "device": name, "torch": torch.__version__, "python": platform.python_version(),
        "argv": " ".join(sys.argv[1:]),
    }  # fmt: skip


def data(options: argparse.Namespace) -> ImageDataset:
    """The images of a folder, or noise of the size of CIFAR-10."""
    if options.data:
        return load_dataset(options.data, max_size=SIDE)
    rng = np.random.default_rng(0)
    splits = [
        Split(rng.integers(0, 256, (n, SIDE, SIDE, 3), np.uint8), rng.integers(0, 10, n))
        for n in ((2_000, 500, 500) if options.quick else (45_000, 5_000, 5_000))
    ]
    return build_dataset(
        name="noise", classes=[str(i) for i in range(10)], train=splits[0], val=splits[1],
        test=splits[2], warnings=(), source="noise",
    )  # fmt: skip


class _Enough(Exception):
    """Ends a training."""


class _Clock:
    """Speed over chunks of steps; ends the training when its time is over."""

    def __init__(self, batch_size: int, seconds: float) -> None:
        self._batch_size, self._seconds = batch_size, seconds
        self._marks: list[float] = []
        self.steps = 0
        self._started = time.perf_counter()

    def step(self) -> None:
        self.steps += 1
        if self.steps % CHUNK:
            return
        synchronise()
        self._marks.append(time.perf_counter())
        over = self._marks[-1] - self._started
        if (over > self._seconds and len(self._marks) > 5) or over > 4 * self._seconds + 30:
            raise _Enough

    def found(self) -> dict[str, object]:
        chunks = np.diff(self._marks)
        late = chunks[len(chunks) // 2 :]
        return {
            "images_per_second": float(self._batch_size * CHUNK * len(late) / late.sum()),
            "best_images_per_second": float(self._batch_size * CHUNK / late.min()),
            "step_ms": float(1e3 * late.mean() / CHUNK),
            "steps": self.steps,
        }


def synchronise() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def ours(
    space: spaces.SearchSpace, dataset: ImageDataset, size: int, seconds: float,
    amp: str = "bf16", each: Callable[[int], None] = lambda step: None,
) -> dict[str, object]:  # fmt: skip
    """``train_supernet`` as it is called by ``deploynas train``."""
    recipe = SupernetRecipe.model_validate(
        {"epochs": 10_000, "batch_size": size, "num_random": 2, "amp": amp}
    )
    torch.manual_seed(0)
    supernet = Supernet(space).to(DEVICE)
    clock = _Clock(size, seconds)

    def watch(state: object) -> None:
        each(clock.steps)
        clock.step()

    with contextlib.suppress(_Enough):
        train_supernet(supernet, dataset, recipe, on_progress=watch)
    found = clock.found()
    if DEVICE.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    return found


def plain(
    space: spaces.SearchSpace, dataset: ImageDataset, size: int, amp: str, seconds: float, *,
    num: int = 4, layout: torch.memory_format = torch.channels_last, compiled: bool = False,
) -> dict[str, object]:  # fmt: skip
    """Plain torch: static networks in turn, each with its optimizer, on resident images."""
    if DEVICE.type == "cpu" and compiled:
        return {"skipped": "needs a GPU"}
    drawn = space.sample(2, np.random.default_rng(0))
    archs = np.concatenate([space.largest(), space.smallest(), drawn])[:num]
    networks = [build(space, a).to(DEVICE).to(memory_format=layout).train() for a in archs]
    optimizers = [torch.optim.SGD(n.parameters(), 0.01, 0.9, nesterov=True) for n in networks]
    if compiled:
        networks = [torch.compile(n, mode="reduce-overhead") for n in networks]  # type: ignore[misc]
    images = torch.from_numpy(dataset.train.images).to(DEVICE).permute(0, 3, 1, 2)
    labels = torch.from_numpy(dataset.train.labels).to(DEVICE)
    clock = _Clock(size, seconds)
    with contextlib.suppress(_Enough):
        while True:
            rows = torch.randint(len(labels), (size,), device=DEVICE)
            x, y = images[rows].float().sub_(128).div_(64), labels[rows]
            x = x.contiguous(memory_format=layout)
            for network, optimizer in zip(networks, optimizers, strict=True):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(DEVICE.type, torch.bfloat16, enabled=amp == "bf16"):
                    logits = network(x)
                nn.functional.cross_entropy(logits.float(), y).backward()
                optimizer.step()
            clock.step()
    return clock.found()


def busy(
    space: spaces.SearchSpace, dataset: ImageDataset, size: int, seconds: float
) -> dict[str, object]:
    """Kernel time a step, by torch's profiler, over the time of a step without it."""
    if DEVICE.type == "cpu":
        return {"skipped": "needs a GPU"}
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    prof = profile(activities=[ProfilerActivity.CUDA])
    span = (20 * CHUNK, 21 * CHUNK)
    wall: dict[str, float] = {}

    def each(step: int) -> None:
        if step == span[0]:
            synchronise()
            prof.start()
            wall["start"] = time.perf_counter()
        elif step == span[1]:
            synchronise()
            wall["profiled"] = time.perf_counter() - wall["start"]
            prof.stop()

    found = ours(space, dataset, size, 3 * seconds, each=each)
    events = [e for e in prof.key_averages() if e.device_type == DeviceType.CUDA]
    total_us = sum(e.self_device_time_total for e in events)
    kernel_ms = total_us / 1e3 / CHUNK
    longest = sorted(events, key=lambda e: -e.self_device_time_total)[:10]
    return {
        **found,
        "kernel_ms_a_step": kernel_ms,
        "kernels_a_step": sum(e.count for e in events) / CHUNK,
        "kernel_over_wall": kernel_ms / float(found["step_ms"]),  # type: ignore[arg-type]
        "profiled_step_ms": wall["profiled"] * 1e3 / CHUNK,
        "longest": [
            f"{e.key[:70]} x{e.count / CHUNK:.0f} {e.self_device_time_total / 1e3 / CHUNK:.2f} ms"
            for e in longest
        ],
    }


def first_seen(
    space: spaces.SearchSpace, dataset: ImageDataset, size: int, quick: bool
) -> dict[str, object]:
    """Milliseconds of a subnet's first and second pass, over subnets drawn one by one."""
    torch.manual_seed(0)
    supernet = Supernet(space).to(DEVICE).to(memory_format=torch.channels_last).train()
    recipe, lender = SupernetRecipe(epochs=1), Lender()
    x = torch.randn(size, space.in_channels, SIDE, SIDE, device=DEVICE)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.zeros(size, dtype=torch.long, device=DEVICE)

    def run(arch: np.ndarray, num: int) -> float:
        synchronise()
        started = time.perf_counter()
        subnet = supernet.lend(arch, lender)
        lender.open(subnet)
        with recipe.autocast(DEVICE):
            loss = nn.functional.cross_entropy(subnet.run(x[:num]), y[:num])
        loss.backward()
        synchronise()
        return 1e3 * (time.perf_counter() - started)

    run(space.largest()[0], 8)  # what a process loads once is not a subnet's
    drawn = space.sample(4 if quick else 16, np.random.default_rng(1))
    first, second = np.array([[run(arch, size) for _ in range(2)] for arch in drawn]).T
    part = max(1, len(first) // 4)
    return {
        "first_ms_in_all": float(first.sum()),
        "first_ms_early": float(np.median(first[:part])),
        "first_ms_late": float(np.median(first[-part:])),
        "second_ms": float(np.median(second)),
    }


if __name__ == "__main__":
    main()
