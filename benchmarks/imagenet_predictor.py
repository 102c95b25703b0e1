"""Held-out error of the ImageNet accuracy predictor: each CSV file by a model of the others.

python benchmarks/imagenet_predictor.py [--json] [--data DIR] [--write]
Networks that another file holds as well are left out of the judged ones. *plain ridge* is the
usual practice beside it: linear regression of the accuracy on the options of the active blocks.
*ceiling* cross-validates over all files at once, ten folds: what a model reaches that has seen
each file's kind of network. --write fits the shipped predictor to all files.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import deploynas as dn
from deploynas.search import accuracy_model
from deploynas.search.imagenet import FOLDER, SUFFIX, ImageNetRecord
from deploynas.spaces import Archs

SPACE = dn.space("ofa-mbv3-w1.0", resolutions=[224])
PROVENANCE = (
    "IntelLabs/DyNAS-T, notebooks/data (Apache-2.0): ImageNet top-1 of sub-networks of the "
    "published ofa_mbv3_d234_e346_k357_w1.0 at 224 px"
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="no effect: it takes seconds")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--write", action="store_true", help="fit the shipped predictor")
    options = parser.parse_args()
    paths = sorted((options.data / "ofa_mbv3_imagenet").glob("*.csv"))
    if not paths:
        raise SystemExit(f"no measurements in {options.data / 'ofa_mbv3_imagenet'}: pass --data")
    files = {path.stem: read(path) for path in paths}
    document: dict[str, object] = {}
    for name, fitted in {"log_gap": log_gap, "plain_ridge": plain_ridge}.items():
        folds = {}
        for held, (archs, accuracies) in files.items():
            seen_archs, seen = merged([files[other] for other in files if other != held])
            known = {row.tobytes() for row in seen_archs}
            new = np.array([row.tobytes() not in known for row in archs])
            error = fitted(seen_archs, seen, archs[new])
            folds[held] = judged(error, accuracies[new])
        document[name] = folds | {"mean": averaged(list(folds.values()))}
    archs, accuracies = merged(list(files.values()))
    document["ceiling"] = ceiling(archs, accuracies, files)
    if options.write:
        write(archs, accuracies, document["log_gap"]["mean"])  # type: ignore[index]
    if options.json:
        print(json.dumps(document))
        return
    for name, rows in document.items():
        print(name)
        for held, row in rows.items():  # type: ignore[attr-defined]
            print(f"  {held:28} " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()))


def read(path: Path) -> tuple[Archs, np.ndarray]:
    """Distinct architectures and accuracies of a file."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    parsed = [ast.literal_eval(row["Sub-network"]) for row in rows]
    archs = SPACE.encode(
        [
            {"resolution": 224, "depths": p["d"], "kernel_sizes": p["ks"], "expand_ratios": p["e"]}
            for p in parsed
        ]
    )
    return merged([(archs, np.array([float(row["Top-1 Acc (%)"]) / 100 for row in rows]))])


def merged(parts: list[tuple[Archs, np.ndarray]]) -> tuple[Archs, np.ndarray]:
    """All parts, each architecture once."""
    archs = np.concatenate([archs for archs, _ in parts])
    accuracies = np.concatenate([accuracies for _, accuracies in parts])
    archs, first = np.unique(archs, axis=0, return_index=True)
    return archs, accuracies[first]


def log_gap(archs: Archs, accuracies: np.ndarray, fresh: Archs) -> np.ndarray:
    """Predictions of the shipped kind of model."""
    fitted = accuracy_model.fit(SPACE.features(archs), accuracies)
    return accuracy_model.predict(*fitted, SPACE.features(fresh))


def plain_ridge(archs: Archs, accuracies: np.ndarray, fresh: Archs) -> np.ndarray:
    """Predictions of ridge regression of the accuracy, penalty by cross-validation."""
    from sklearn.linear_model import RidgeCV

    skipped = accuracy_model.NUM_FREE + 2 * len(SPACE.table.stages)
    x, new = (SPACE.features(a)[:, skipped:] for a in (archs, fresh))
    model = RidgeCV(alphas=accuracy_model.PENALTIES).fit(x, accuracies)
    return np.asarray(model.predict(new))


def judged(predicted: np.ndarray, accuracies: np.ndarray) -> dict[str, float]:
    """Errors in points of per cent."""
    error = 100 * (predicted - accuracies)
    return {
        "networks": len(error),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "bias": float(error.mean()),
        "spearman": float(spearmanr(predicted, accuracies)[0]),
    }


def averaged(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over the files; of biases, of their sizes."""
    return {
        "rmse": float(np.mean([row["rmse"] for row in rows])),
        "bias": float(np.mean([abs(row["bias"]) for row in rows])),
        "spearman": float(np.mean([row["spearman"] for row in rows])),
    }


def ceiling(
    archs: Archs, accuracies: np.ndarray, files: dict[str, tuple[Archs, np.ndarray]]
) -> dict[str, dict[str, float]]:
    """Cross-validated over all files at once, told file by file."""
    folds = np.random.default_rng(0).permutation(len(archs)) % 10
    predicted = np.empty(len(archs))
    for fold in range(10):
        out = folds == fold
        predicted[out] = log_gap(archs[~out], accuracies[~out], archs[out])
    place = {row.tobytes(): i for i, row in enumerate(archs)}
    rows = {}
    for name, (own, _) in files.items():
        where = [place[row.tobytes()] for row in own]
        rows[name] = judged(predicted[where], accuracies[where])
    return rows | {"mean": averaged(list(rows.values()))}


def write(archs: Archs, accuracies: np.ndarray, errors: dict[str, float]) -> None:
    """Fit the shipped predictor to everything."""
    fitted, weights = accuracy_model.fit(SPACE.features(archs), accuracies)
    macs = SPACE.macs(archs)
    path = FOLDER / f"{SPACE.name}{SUFFIX}"
    ImageNetRecord.model_validate(
        {
            "space": SPACE.name,
            "resolutions": [one.plain for one in SPACE.resolutions],
            "provenance": PROVENANCE,
            "num_networks": len(archs),
            "ceiling": fitted,
            "weights": [float(f"{w:.6g}") for w in weights],
            "rmse": round(errors["rmse"] / 100, 6),
            "bias": round(errors["bias"] / 100, 6),
            "spearman": round(errors["spearman"], 4),
            "accuracy_range": (float(accuracies.min()), float(accuracies.max())),
            "macs_range": (int(macs.min()), int(macs.max())),
        }
    ).write(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
