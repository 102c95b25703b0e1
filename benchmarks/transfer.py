"""Latency of a device from ten networks and other devices: on published tables, or on real ones.

python benchmarks/transfer.py --tables DIR --space nasbench201|fbnet [--sources A,B --targets C,D]
                              [--samples 10] [--seeds 20] [--json]
DIR holds nasbench201/ and fbnet/ with latency_ms.csv.gz, a column a device. Without sources and
targets every device is held out in turn with its whole kind (GPUs, Xeons, phones). Printed are the
rank correlation over all networks but the samples, and the mean relative error (of networks that
take at least 5 % of the median: a phone's table holds impossible zeros), the mean over the seeds,
of which each draws the networks that the design chooses from; beside them two ceilings of the
correlation: what a table of operations reaches that is fitted to all other measurements of the
target (five folds), and what is left of that table's times when they are rounded as the target's.

python benchmarks/transfer.py --devices [cpu>web,…] [--space S] [--resolution R] [--samples 10]
                              [--networks 24] [--json]
Real devices of this machine, "cpu-t2" with two threads: networks that no model has seen, measured
once, against the transferred profile and against the target's full one. Full profiles are made (or
completed) in benchmarks/profiles/.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import deploynas as dn
from deploynas.device import Device, open_device
from deploynas.profile import DeviceProfile, LatencyModel, profile_space
from deploynas.profile.from_others import transfer_space
from deploynas.profile.prior import Prior
from deploynas.profile.validate import fresh_archs, validate_together
from deploynas.spaces.nasbench201 import EDGES, NONE, OPERATIONS, parse_cell

NUM_CANDIDATES = 700  # a design chooses from
PAIRS = "cpu>web,cpu>cpu-t2,cpu>litert,cpu>ncnn,cpu>openvino,web>cpu"
KINDS = {"gpu": ("1080ti", "titan", "2080"), "xeon": ("silver", "gold", "xeon")}
_RIDGE = 3.0
_LEAST = 0.05  # of the median latency: below it a relative error says nothing

# FBNet's blocks (Wu et al. 2019, table 1): output channels and stride, at 224 px
_FBNET = [
    (16, 1), (24, 2), *[(24, 1)] * 3, (32, 2), *[(32, 1)] * 3, (64, 2), *[(64, 1)] * 3,
    (112, 1), *[(112, 1)] * 3, (184, 2), *[(184, 1)] * 3, (352, 1),
]  # fmt: skip


class Table:
    """A space's networks with their latencies.

    Attributes:
        latencies: Device -> ``(n,)``, milliseconds.
        operations: ``(n, k)`` 1 where an operation stands at a place.
        work: ``(n, k)`` each: what devices may differ in; ``widths`` one each.
    """

    def __init__(self, folder: Path, name: str) -> None:
        header, *rows = _rows(folder / name / "latency_ms.csv.gz")
        first = header.index("blocks") + 1 if "blocks" in header else 0
        values = np.array([[float(v) for v in row[first:]] for row in rows])
        self.latencies = dict(zip(header[first:], values.T, strict=True))
        if name == "fbnet":
            self.operations, self.work = _fbnet([row[0].split() for row in rows])
            self.widths = [0.3] * len(self.work)
        else:
            cells = [row[0] for row in _rows(folder / name / "accuracy.csv.gz")[1:]]
            self.operations, self.work = _nasbench201(cells)
            self.widths = [0.3, 0.1, 0.3]

    def smooth(self, device: str) -> np.ndarray:
        """``(n,)`` a source as a table of operations, which has none of its noise."""
        ms = self.latencies[device]
        return self._fit(np.clip(ms, *np.quantile(ms, [0.003, 0.99])), np.ones(len(ms), bool))

    def ceiling(self, device: str) -> float:
        """Correlation of the table that is fitted to all other measurements."""
        ms = self.latencies[device]
        wanted, folds = np.clip(ms, *np.quantile(ms, [0.003, 0.99])), np.arange(len(ms)) % 5
        predicted = np.empty(len(ms))
        for fold in range(5):
            predicted[folds == fold] = self._fit(wanted, folds != fold)[folds == fold]
        return spearman(predicted, ms)

    def _fit(self, wanted: np.ndarray, seen: np.ndarray) -> np.ndarray:
        x = np.concatenate([np.ones((len(wanted), 1)), self.operations], axis=1)
        ridge = _RIDGE * np.eye(x.shape[1])
        return x @ np.linalg.solve(x[seen].T @ x[seen] + ridge, x[seen].T @ wanted[seen])

    def prior(self, sources: Sequence[str], rows: np.ndarray) -> Prior:
        """What sources say of some networks."""
        known = np.stack([self.smooth(source) for source in sources], axis=1)
        known = np.maximum(known, known.mean(axis=0) * _LEAST)
        work = list(self.work)
        if len(self.widths) > len(work):  # what is not read costs as much as the sources say
            mean = (known / known.mean(axis=0)).mean(axis=1)
            numbers, read = self.work
            x = np.concatenate([np.ones((len(mean), 1)), numbers], axis=1)
            each = np.linalg.lstsq(x, mean, rcond=None)[0][1:]
            work.append(((numbers - read) @ each)[:, None])
        columns = np.concatenate([np.ones((len(known), 1)), known, *work], axis=1)
        sizes = [block.shape[1] for block in work]
        return Prior(columns[rows], len(sources), sizes, self.widths)


def _nasbench201(cells: list[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Operations on edges, all and those whose result is read; and the numbers of each kind."""
    ops = np.array([[OPERATIONS.index(op) for op in parse_cell(cell)["ops"]] for cell in cells])
    read = np.array([_read(row) for row in ops])
    one_hot = [m[:, :, None] == np.arange(1, len(OPERATIONS)) for m in (ops, read)]
    places = [m.reshape(len(cells), -1).astype(np.float64) for m in one_hot]
    return np.concatenate(places, axis=1), [m.sum(axis=1).astype(np.float64) for m in one_hot]


def _read(ops: np.ndarray) -> np.ndarray:
    """Operations on edges, ``none`` where the cell's output does not depend on the result."""
    needed, kept = {max(node for node, _ in EDGES)}, np.zeros_like(ops)
    for (node, source), i in sorted(zip(EDGES, range(len(EDGES)), strict=True), reverse=True):
        if node in needed and ops[i] != OPERATIONS.index(NONE):
            needed.add(source)
            kept[i] = ops[i]
    return kept


def _fbnet(networks: list[list[str]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Blocks at places; numbers of blocks, multiply-adds, feature maps, weights."""
    names = sorted({block for network in networks for block in network})
    places = np.array([[names.index(block) for block in network] for network in networks])
    one_hot = (places[:, :, None] == np.arange(len(names))).reshape(len(networks), -1)
    operations = one_hot.astype(np.float64)
    costs, channels, side = [], 16, 112
    for out, stride in _FBNET:
        costs += [_block(name, channels, out, stride, side) for name in names]
        channels, side = out, side // stride
    sums = operations @ np.array(costs, np.float64)
    return operations, list(sums.T[:, :, None])


def _block(name: str, channels: int, out: int, stride: int, side: int) -> tuple[int, ...]:
    """1, multiply-adds, feature maps and weights of a block; a skip that fits has nothing."""
    after = side // stride
    if name == "skip":
        is_layer = channels != out or stride != 1
        macs, maps, weights = channels * out * after**2, out * after**2, channels * out
        return (0, is_layer * macs, is_layer * maps, is_layer * weights)
    kernel, ratio, *grouped = name.split("_")
    area, middle, groups = int(kernel[1:]) ** 2, channels * int(ratio[1:]), 2 if grouped else 1
    macs = (channels * middle * side**2 + middle * out * after**2) // groups
    weights = (channels * middle + middle * out) // groups + area * middle
    maps = middle * side**2 + (middle + out) * after**2
    return (1, macs + area * middle * after**2, maps, weights)


def on_tables(options: argparse.Namespace) -> dict[str, object]:
    """The published tables."""
    table = Table(options.tables, options.space)
    names = list(table.latencies)
    targets = options.targets.split(",") if options.targets else names
    asked = options.sources.split(",") if options.sources else None
    unknown = sorted({*targets, *(asked or ())} - set(names))
    if unknown:
        raise SystemExit(f"no device {unknown[0]} in the table; it has {', '.join(names)}")
    found: dict[str, dict[str, float]] = {}
    for target in targets:
        sources = asked or [name for name in names if kind(name) != kind(target)]
        sources = [name for name in sources if name != target]
        if not sources:
            raise SystemExit(f"no source is left for {target}")
        found[target] = transferred(table, sources, target, options.samples, options.seeds)
    return {
        "targets": found,
        "mean": {k: float(np.mean([one[k] for one in found.values()])) for k in METRICS},
    }


METRICS = ("spearman", "error", "ceiling", "rounding_ceiling", "seconds")


def transferred(
    table: Table, sources: Sequence[str], target: str, num: int, seeds: int
) -> dict[str, float]:
    """How well ``num`` networks of the target tell all others."""
    ms = table.latencies[target]
    step = 1.0 if (ms % 1 == 0).all() else 0.0
    every = table.prior(sources, np.arange(len(ms)))
    tells = ms > _LEAST * np.median(ms)
    rows = []
    for seed in range(seeds):
        start = time.perf_counter()
        pool = np.random.default_rng(seed).permutation(len(ms))[:NUM_CANDIDATES]
        chosen = pool[table_design(every, pool, num)]
        posterior = every.fit(every.columns[chosen], ms[chosen], step)
        predicted = every.columns @ posterior.weights
        seconds = time.perf_counter() - start
        others = np.setdiff1d(np.arange(len(ms)), chosen)
        judged = others[tells[others]]
        error = np.abs(predicted[judged] / ms[judged] - 1).mean()
        rows.append((spearman(predicted[others], ms[others]), error, seconds))
    smooth = table.smooth(target)
    rounded = spearman(smooth, np.round(smooth)) if step else 1.0
    correlation, error, seconds = np.mean(rows, axis=0)
    values = (correlation, error, table.ceiling(target), rounded, seconds)
    return dict(zip(METRICS, map(float, values), strict=True))


def table_design(every: Prior, pool: np.ndarray, num: int) -> list[int]:
    """The networks of ``pool`` to measure."""
    return Prior(every.columns[pool], every.num_sources, every.blocks, every.widths).design(
        num, every.columns[:0]
    )


def kind(device: str) -> str:
    """Of a device of the tables, by its name."""
    found = [k for k, parts in KINDS.items() if any(part in device for part in parts)]
    return found[0] if found else "phone"


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation, ties sharing their mean rank."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, number = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(number) - (number - 1) / 2)[place.reshape(-1)]


def _rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise SystemExit(f"{path}: no such file")
    with gzip.open(path, "rt") as file:
        return list(csv.reader(file))


def on_devices(options: argparse.Namespace) -> dict[str, object]:
    """Real devices of this machine."""
    space = dn.space(options.space, resolutions=[options.resolution])
    folder, rows = Path(__file__).parent / "profiles", {}
    for pair in options.devices.split(","):
        names = pair.split(">")
        devices = [_opened(name) for name in names]
        paths = [folder / f"{name}.json" for name in names]
        full = [
            profile_space(space, device, path)[0]
            for device, path in zip(devices, paths, strict=True)
        ]
        with TemporaryDirectory() as temporary:
            start = time.monotonic()
            few = transfer_space(
                space, devices[1], Path(temporary) / "few.json", {paths[0]: full[0]},
                options.samples,
            )  # fmt: skip
            seconds = time.monotonic() - start
        models = {LatencyModel(space, one): one for one in (few, full[1])}
        archs = _unseen(space, [few, full[1]], options.networks)
        judged = validate_together(models, devices[1], archs)
        rows[pair] = {
            "seconds": seconds,
            **{
                f"{name}_{key}": getattr(one.table, key)
                for name, one in zip(("transferred", "full"), judged, strict=True)
                for key in ("mape", "kendall_tau", "noise_floor")
            },
            "transferred_stated": judged[0].half_width,
            "full_stated": judged[1].half_width,
        }
        print(json.dumps({pair: rows[pair]}), flush=True)
    return {"space": options.space, "resolution": options.resolution, "pairs": rows}


def _unseen(space: dn.SearchSpace, profiles: list[DeviceProfile], num: int) -> np.ndarray:
    """Random networks that none of the profiles has measured."""
    drawn = [fresh_archs(space, profile, 4 * num) for profile in profiles]
    keys = [{row.tobytes() for row in archs} for archs in drawn]
    return drawn[0][[row.tobytes() in keys[1] for row in drawn[0]]][:num]


def _opened(name: str) -> Device:
    base, _, threads = name.partition("-t")
    return open_device(base, int(threads or 1))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tables", type=Path, help="folder of published tables")
    parser.add_argument("--space", help="nasbench201 or fbnet; with --devices a space")
    parser.add_argument("--sources", help="with commas; all of other kinds by default")
    parser.add_argument("--targets", help="with commas; each in turn by default")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--devices", nargs="?", const=PAIRS, help="pairs with commas")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--networks", type=int, default=24)
    options = parser.parse_args()
    if (options.tables is None) == (options.devices is None):
        parser.error("give one of --tables and --devices")
    if options.tables is not None and options.space not in ("nasbench201", "fbnet"):
        parser.error("--space is nasbench201 or fbnet")
    options.space = options.space or "ofa-mbv3-w1.0"
    document = on_devices(options) if options.devices else on_tables(options)
    if options.json:
        print(json.dumps(document))
        return
    for name, row in document.get("targets", document.get("pairs")).items():
        print(f"{name:18}", "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    if "mean" in document:
        print(f"{'mean':18}", "  ".join(f"{k} {v:.3f}" for k, v in document["mean"].items()))


if __name__ == "__main__":
    main()
