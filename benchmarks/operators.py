"""Networks that no space built: what the operator layer predicts, and what is measured now.

python benchmarks/operators.py [--json] [--folder DIR] [--models FILE | NAME…] [--device D]
                               [--profile P] [--fresh] [--minutes M]
A name is LIBRARY:NAME@SIDE, for example timm:lcnet_100@224; a file holds a name a line. Networks
have random weights and are written by torch's own exporter (timm and onnxscript are needed) into
DIR, where files that are there already are taken as they are. All are measured together, with
references in between, and compared at the level of the profile. The profile of operators is made
in benchmarks/profiles/ where it is not there; --fresh makes it anew and prints the time.

The kinds of operators and of fragments were chosen with the families in CHOSEN_WITH before us. Of
the others only the errors were seen meanwhile: for a test, give names of your own.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploynas.device import StopRule, measure, open_device
from deploynas.graph.operators import operators
from deploynas.profile import DeviceProfile
from deploynas.profile.operators import OperatorModel, profile_operators, quiet_ms

FAMILIES = {
    "resnet": "resnet18@224 resnet50@128 resnext50_32x4d@128 timm:resnet10t@160",
    "mobilenet-v2": "mobilenet_v2@224 mnasnet1_0@128 mnasnet0_5@160 timm:fbnetc_100@160 "
    "timm:spnasnet_100@224 timm:semnasnet_100@128",
    "mobilenet-v3": "mobilenet_v3_large@224 mobilenet_v3_small@160 timm:lcnet_100@224 "
    "timm:hardcorenas_a@224 timm:fbnetv3_b@160",
    "efficientnet": "efficientnet_b0@160 timm:efficientnet_lite0@224 timm:tinynet_a@160 "
    "timm:efficientnet_es@160 timm:mobilenet_edgetpu_v2_xs@160",
    "shufflenet": "shufflenet_v2_x1_0@224 shufflenet_v2_x0_5@128",
    "squeezenet": "squeezenet1_0@128 squeezenet1_1@224",
    "mobilenet-v4": "timm:mobilenetv4_conv_small@224 timm:mobilenetv4_conv_medium@160",
    "ghostnet": "timm:ghostnet_100@224 timm:repghostnet_100@160 timm:ghostnetv2_100@128",
    "regnet": "regnet_y_400mf@224 regnet_x_400mf@160",
    "densenet": "densenet121@128",
    "inception": "googlenet@160 inception_v3@160",
    "mixnet": "timm:mixnet_s@160",
    "rexnet": "timm:rexnet_100@160",
    "plain": "timm:mobileone_s0@224 timm:repvit_m0_9@160 timm:starnet_s1@160",
    "vgg": "vgg11@128 alexnet@224",
    "dla": "timm:dla34@128 timm:dla46_c@160",
    "hrnet": "timm:hrnet_w18_small@128",
    "selecsls": "timm:selecsls42b@160",
    "attention": "timm:mobilevit_xs@160 timm:edgenext_xx_small@160 convnext_tiny@128 "
    "timm:efficientvit_b0@160 timm:levit_128s@224",
}
CHOSEN_WITH = (
    "resnet", "mobilenet-v2", "mobilenet-v3", "efficientnet", "shufflenet", "squeezenet",
    "mobilenet-v4", "regnet", "densenet", "inception", "mixnet", "plain", "attention",
)  # fmt: skip
RULE = StopRule(precision=0.01, min_sessions=3, max_sessions=8, rounds=8, session_seconds=15.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", type=Path, help="a file of names")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "models")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--fresh", action="store_true", help="profile from nothing")
    parser.add_argument("--minutes", type=float, default=4.0, help="of measuring the networks")
    options = parser.parse_args()
    device = open_device(options.device)
    path = (
        options.profile or Path(__file__).parent / "profiles" / f"operators-{options.device}.json"
    )
    if options.fresh:
        path.unlink(missing_ok=True)
    begun, profile_s = time.monotonic(), None
    if not path.exists() or not DeviceProfile.read(path).fragments:
        profile_operators(device, path)
        profile_s = time.monotonic() - begun
    profile = DeviceProfile.read(path)
    named = options.names
    if options.models:
        lines = (
            line.partition("#")[0].split() for line in options.models.read_text().splitlines()
        )
        named = ["@".join(words) for words in lines if words]
    named = named or [name for names in FAMILIES.values() for name in names.split()]
    files = {}
    for name in named:
        file = options.folder / f"{_full(name).replace(':', '-').replace('@', '-')}.onnx"
        if file.is_file() or export(name, file):
            files[name] = file
    begun = time.monotonic()
    model = OperatorModel(profile)
    fit_s = time.monotonic() - begun
    seconds = options.minutes * 60
    rule = replace(RULE, soft_seconds=seconds * 0.6, max_seconds=seconds)
    samples = measure(device, files, rule)
    rows = []
    for name, file in files.items():
        graph = operators(file)
        begun = time.monotonic()
        price = model.predict(graph)
        predict_ms = 1e3 * (time.monotonic() - begun)
        found = quiet_ms(profile, samples[name])
        rows.append(
            {
                "name": name, "family": family_of(name), "measured_ms": found.median,
                "noise": found.half_width, "predicted_ms": price.ms,
                "error": price.ms / found.median - 1, "stated": price.margin,
                "within": price.low_ms <= found.median <= price.high_ms,
                "strange_share": price.strange_share,
                "strange": sorted({one.kind for one in price.strange}), "predict_ms": predict_ms,
            }
        )  # fmt: skip
    document = {
        "device": profile.identity.title, "profile_s": profile_s, "fit_s": fit_s,
        "stated": model.validation.model_dump(), "networks": rows,
        "chosen_with": _summary([r for r in rows if r["family"] in CHOSEN_WITH]),
        "others": _summary([r for r in rows if r["family"] not in CHOSEN_WITH]),
        "notes": list(device.notes),
    }  # fmt: skip
    if options.json:
        print(json.dumps(document))
        return
    for row in sorted(rows, key=lambda row: (row["family"] not in CHOSEN_WITH, row["family"])):
        print(
            f"{row['family']:14}{row['name']:34}{row['measured_ms']:9.3f}{row['predicted_ms']:9.3f}"
            f"{row['error']:+8.1%} (states {row['stated']:.1%}, noise {row['noise']:.1%})"
            f" {' '.join(row['strange'])}"
        )
    for which in ("chosen_with", "others"):
        print(which, json.dumps(document[which]))
    print(f"profile {profile_s}, fit {fit_s:.2f} s", json.dumps(document["stated"]))


def family_of(name: str) -> str:
    """Of a network; ``other`` where it is in no list."""
    bare = _full(name).partition("@")[0]
    for family, names in FAMILIES.items():
        if bare in (_full(one).partition("@")[0] for one in names.split()):
            return family
    return "other"


def export(name: str, file: Path) -> bool:
    """Write a network by torch's exporter; False, and a line, where that fails."""
    import sys

    import torch

    full, _, side = _full(name).partition("@")
    library, _, model = full.partition(":")
    try:
        torch.manual_seed(0)
        if library == "timm":
            import timm

            module = timm.create_model(model, pretrained=False)
        else:
            import torchvision

            module = torchvision.models.get_model(model, weights=None)
        image = torch.randn(1, 3, int(side or 224), int(side or 224))
        with torch.no_grad():
            program = torch.onnx.export(module.eval(), (image,), dynamo=True, verbose=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        program.save(str(file), external_data=False)
    except Exception as error:
        file.unlink(missing_ok=True)
        print(f"{name}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
        return False
    return True


def _full(name: str) -> str:
    return name if ":" in name else f"torchvision:{name}"


def _summary(rows: list[dict[str, object]]) -> dict[str, object]:
    """Mean and worst error, and shares."""
    if not rows:
        return {"num_networks": 0}
    errors = np.abs([float(str(row["error"])) for row in rows])
    return {
        "num_networks": len(rows), "mean": float(errors.mean()), "worst": float(errors.max()),
        "within_10_percent": float((errors <= 0.1).mean()),
        "within_stated": float(np.mean([bool(row["within"]) for row in rows])),
    }  # fmt: skip


if __name__ == "__main__":
    main()
