"""Foreign networks read, cut by a quarter, and exported: how many of a list, and how exactly.

python benchmarks/adapt.py --models FILE [--only NAME] [--json] [--journal FILE]
FILE has a network a line: ``torchvision:mobilenet_v2 128``, ``timm:efficientnet_lite0 128``. Every
group of channels that was found loses a quarter; the cut network is exported by torch's own
exporter and run by ONNX Runtime. Needs timm and onnxscript, which nothing else here does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from deploynas.errors import DeploynasError
from deploynas.nn.adapt import Reading, read
from deploynas.nn.adapt.sources import load_module

PARITY = 1e-4  # of the outputs' deviation


def main() -> None:
    """Read, cut, export, count."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--journal", type=Path, help="Keeps what is done; goes on from there.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [line.split() for line in options.models.read_text().splitlines()]
    wanted = [(x[0], int(x[1])) for x in lines if x and x[0][0] != "#" and options.only in x[0]]
    kept = options.journal.read_text().splitlines() if _exists(options.journal) else []
    rows = {row["model"]: row for row in map(json.loads, kept)}
    for name, side in wanted:
        if name not in rows:
            rows[name] = judged(name, side)
            if options.journal:
                with options.journal.open("a") as out:
                    out.write(json.dumps(rows[name]) + "\n")
        if not options.json:
            print(_told(rows[name]), flush=True)
    found = [rows[name] for name, _ in wanted]
    document = {
        "models": len(found),
        "read": sum(row["groups"] > 0 for row in found),
        "cut_and_exported": sum(
            row["parity"] is not None and row["parity"] <= PARITY for row in found
        ),
        "rows": found,
    }
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        print(
            f"of {document['models']} networks {document['read']} have groups of channels, "
            f"{document['cut_and_exported']} were cut and exported with parity <= {PARITY:g}"
        )


def judged(name: str, side: int) -> dict[str, Any]:
    """One network."""
    started = time.monotonic()
    row: dict[str, Any] = {"model": name, "side": side, "groups": 0, "parity": None, "why": ""}
    example = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        module = load_module(name)
        shake(module)
        reading = read(module, example)
        quarter = {i: range(g.size - g.size // 4) for i, g in enumerate(reading.groups)}
        row |= {
            "groups": len(reading.groups), "regions": len(reading.regions),
            "kernels": len(reading.kernels), "frozen": len(reading.frozen),
            "macs": reading.macs({}), "macs_left": reading.macs(quarter) / reading.macs({}),
            "read_s": time.monotonic() - started,
        }  # fmt: skip
        if reading.groups:
            row["parity"] = parity(reading, reading.cut(quarter))
    except DeploynasError as error:
        row["why"] = str(error)
    except Exception as error:
        row["why"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    return {**row, "seconds": time.monotonic() - started}


def shake(module: nn.Module) -> None:
    """Statistics of batch norms at random, so that a wrong pairing of channels shows."""
    generator = torch.Generator().manual_seed(1)
    for one in module.modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):
            assert one.running_mean is not None
            assert one.running_var is not None
            one.running_mean.copy_(torch.randn(one.running_mean.shape, generator=generator) * 0.1)
            one.running_var.copy_(torch.rand(one.running_var.shape, generator=generator) + 0.5)


def parity(reading: Reading, module: nn.Module) -> float:
    """Largest difference between the module and its file, of the outputs' deviation."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module.eval(), (reading.example,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (feed,) = session.get_inputs()
        found = session.run(None, {feed.name: reading.example.numpy()})[0]
        expected = module(reading.example)
    expected = expected[0] if isinstance(expected, tuple) else expected
    return float(np.abs(found - expected.numpy()).max() / expected.numpy().std())


def _told(row: dict[str, Any]) -> str:
    if not row["groups"]:
        return f"{row['model']:<38} {row['why'] or 'no groups'}"
    told = "-" if row["parity"] is None else f"{row['parity']:.1e}"
    return (
        f"{row['model']:<38} {row['groups']:>3} groups {row['regions']:>3} regions "
        f"{row['kernels']:>3} kernels {row['frozen']:>3} frozen, MACs left "
        f"{row['macs_left']:.2f}, parity {told}, {row['seconds']:.0f} s {row['why']}"
    )


def _exists(path: Path | None) -> bool:
    return path is not None and path.exists()


if __name__ == "__main__":
    main()
