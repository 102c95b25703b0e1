"""INT8: how much faster, how much less accurate, and how well is its latency predicted?

python benchmarks/export.py speed    [--device cpu] [--json] [--quick]
python benchmarks/export.py accuracy RUN...
python benchmarks/export.py model    [--device cpu] [--space S] [--resolution R]
speed     float and int8 of random networks of published spaces at 224 px, and of mobile-small at
          32 px, in turn: times as long as float, and its 95 % interval.
accuracy  of the networks of finished searches: the validation accuracy of the float and the int8
          file, and the largest difference of a logit between PyTorch and the float file.
model     the int8 latency model of a space: a profile (resumed where there is one) and 40 fresh
          networks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from deploynas.check.regression import Baseline, against
from deploynas.device import open_device
from deploynas.export.manifest import Manifest
from deploynas.profile import LatencyModel, profile_space
from deploynas.profile.profiler import write_timed
from deploynas.profile.validate import fresh_archs, validate
from deploynas.spaces import StagedSpace, space
from deploynas.workflows.chosen import open_run
from deploynas.workflows.exporting import export, open_for_export
from deploynas.workflows.images import open_data
from deploynas.workflows.quantized import Int8

PROFILES = Path(__file__).parent / "profiles"
SPEED = (
    ("ofa-mbv3-w1.0", 224), ("ofa-proxyless-w1.3", 224), ("proxyless-mobile", 224),
    ("mobile-small", 32),
)  # fmt: skip
SECONDS = 20.0  # of a comparison


def main() -> None:
    """Print one part's table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("speed", "accuracy", "model"))
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one network a space")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--space", default="ofa-mbv3-w1.0")
    parser.add_argument("--resolution", type=int, default=224)
    options = parser.parse_args()
    document = {"speed": speed, "accuracy": accuracy, "model": model}[options.part](options)
    if options.json:
        print(json.dumps(document))
        return
    for key, value in document.items():
        print(f"{key:32} {value:.4f}" if isinstance(value, float) else f"{key:32} {value}")


def speed(options: argparse.Namespace) -> dict[str, object]:
    """Latency of int8 over that of float."""
    device = open_device(options.device)
    document: dict[str, object] = {"device": device.identity.title}
    for name, side in SPEED:
        chosen = space(name, resolutions=[side])
        assert isinstance(chosen, StagedSpace)
        archs = chosen.sample(1 if options.quick else 3, np.random.default_rng(60_001))
        told = []
        for arch in archs:
            with tempfile.TemporaryDirectory() as folder:
                nodes = chosen.layers(arch)
                slow = write_timed(Path(folder) / "float.onnx", nodes, "fp32")
                fast = write_timed(Path(folder) / "int8.onnx", nodes, "int8")
                ratio = against(device, fast, Baseline(slow, 0.0, SECONDS)).ratio
            told.append(f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})")
            print(f"{name} {told[-1]}", file=sys.stderr)
        document[f"{name} {side} px"] = ", ".join(told)
    return document


def accuracy(options: argparse.Namespace) -> dict[str, object]:
    """What int8 loses."""
    document: dict[str, object] = {}
    for run in options.runs:
        _, result = open_run(run, lambda picked: None)
        trained = open_for_export(run, result, None, as_searched=False)
        dataset = open_data(trained.data)
        with tempfile.TemporaryDirectory() as folder:
            manifest: Manifest = export(
                result, trained, Path(folder), quantize=Int8(dataset, 1.0, None)
            )
        found = manifest.quantization
        assert found
        document[str(run)] = (
            f"{found.accuracy_float:.4f} -> {found.accuracy_int8:.4f} on {found.num_images} "
            f"images; float file off PyTorch by {manifest.parity_max_abs_diff:.1e} on "
            f"{manifest.parity_num_images}"
        )
    return document


def model(options: argparse.Namespace) -> dict[str, object]:
    """The error of the int8 latency model."""
    device = open_device(options.device)
    chosen = space(options.space, resolutions=[options.resolution])
    assert isinstance(chosen, StagedSpace)
    path = PROFILES / f"{options.device}-t1.json"
    profile, _ = profile_space(
        chosen, device, path, precision="int8",
        on_progress=lambda text, share: None,
    )  # fmt: skip
    latency = LatencyModel(chosen, profile, "int8")
    archs = fresh_archs(chosen, profile, 12 if options.quick else 40, precision="int8")
    judgement = validate(latency, profile, device, archs)
    return {
        "space": f"{chosen.name} {options.resolution} px",
        "networks": judgement.table.num_networks,
        "mean_error": judgement.table.mape,
        "worst": judgement.worst,
        "kendall_tau": judgement.table.kendall_tau,
        "stated_error": judgement.half_width,
        "noise_floor": judgement.table.noise_floor,
        "sum_of_layers_error": judgement.sum_mape,
    }


if __name__ == "__main__":
    main()
