"""Damaged files, given to the readers themselves: each is refused in a line, or read right.

python benchmarks/fuzz.py [--inputs 50000] [--only READER] [--seed 0] [--json]
Every file that is read is made, damaged at random (its bytes, or what it holds) and read, in
processes of their own without the command line, so that nothing hides what a reader raises.
A failure is whatever is no typed error of one line: another exception, a crash of the
interpreter, more than 20 seconds, a file written elsewhere, or a success of a file with a digest
that is not what was written. ``--only READER --index N`` makes one input again, and shows it.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mutate
import numpy as np
from mutate import Mutation

ROOT = Path(__file__).parents[1]
FORMATS = ROOT / "tests" / "formats" / "2026-11-27"
MAX_SECONDS = 20
MAX_BYTES = 3 << 30  # that reading may take
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Reader:
    """One kind of file, and what reads it.

    Attributes:
        files: Those that are damaged, each with how.
        read: What they hold, comparable; equal for equal files.
        strict: Whether a success must be what was written: there is a digest, which only
            who signs again gets around.
    """

    files: tuple[tuple[Path, tuple[Mutation, ...]], ...]
    read: Callable[[], object]
    strict: bool = False


Make = Callable[[Path], Reader]
MAKERS: dict[str, tuple[Make, float]] = {}  # with its share of the inputs
JSON = (mutate.of_json, mutate.of_json, mutate.of_bytes)


def reader(name: str, weight: float) -> Callable[[Make], Make]:
    def keep(make: Make) -> Make:
        MAKERS[name] = make, weight
        return make

    return keep


ARTEFACTS = (
    "check.regression", "device.named", "export", "profile", "search", "search.imagenet",
    "workflows.chosen", "workflows.compare_table", "workflows.demo", "workflows.gradient",
    "workflows.retraining", "workflows.supernets", "workflows.trainings",
)  # fmt: skip


def _artifact(file: Path, folder: Path, *, old: bool) -> Reader:
    from deploynas.artifacts import Artifact

    for name in ARTEFACTS:
        importlib.import_module(f"deploynas.{name}")
    schema = json.loads(file.read_text())["schema"]
    kind = next(one for one in Artifact.__subclasses__() if one.SCHEMA == schema)
    path = folder / "artefact.json"
    path.write_bytes(file.read_bytes()) if old else kind.read(file).write(path)
    return Reader(((path, JSON),), lambda: kind.read(path), not old)


for _file in (*sorted(FORMATS.glob("*.json")), *ROOT.glob("deploynas/search/*.imagenet.json")):
    reader(_file.stem, 3)(partial(_artifact, _file, old=False))
    reader(f"{_file.stem} of before", 1)(partial(_artifact, _file, old=True))


@reader("profile, packed", 3)
def profile(folder: Path) -> Reader:
    from deploynas.profile import DeviceProfile

    path = folder / "p.json.gz"
    whole = DeviceProfile.read(FORMATS / "profile.json").document()
    path.write_bytes(gzip.compress(json.dumps(whole).encode()))
    mutation = mutate.of_gzip(mutate.of_json)
    return Reader(((path, (mutation,)),), lambda: DeviceProfile.read(path), True)


@reader("runs", 6)
def run(folder: Path) -> Reader:
    from deploynas.search import SearchResult
    from deploynas.workflows.chosen import open_run

    path = SearchResult.read(FORMATS / "search-ofa.json").write(folder / "search.json")
    return Reader(((path, JSON),), lambda: open_run(folder, lambda picked: None), True)


@reader("exports", 4)
def export(folder: Path) -> Reader:
    from deploynas.workflows.inspect import inspect_model

    own = ROOT / "exports" / "fashion-mnist"
    for name in ("manifest.json", "model.onnx"):
        (folder / name).write_bytes((own / name).read_bytes())
    files = (
        (folder / "manifest.json", JSON),
        (folder / "model.onnx", (mutate.of_bytes, mutate.of_onnx)),
    )
    return Reader(files, lambda: inspect_model(folder), True)


@reader("journals", 8)
def journals(folder: Path) -> Reader:
    from deploynas.journal import Journal
    from deploynas.profile.device_profile import JournalHead, JournalRound, open_journal
    from deploynas.search.evaluations import Evaluation

    path = folder / "evaluations.jsonl"
    with Journal(path, Evaluation, "run") as evaluations:
        for i in range(5):
            architecture = {"resolution": 24, "depths": [1, 2, i]}
            evaluations.append(
                Evaluation(
                    evaluator="e", fidelity="quick", architecture=architecture, accuracy=i / 7
                )
            )
    with open_journal(folder / "cpu.json") as rounds:
        rounds.append(JournalHead(identity={"device": "cpu"}))
        for i in range(5):
            rounds.append(
                JournalRound(first=not i, bytes={"a": 10}, touches={"a": (1.0 + i, 1.0, 1.0)})
            )
        other = rounds.path

    def read() -> object:
        with Journal(path, Evaluation, "run") as one, open_journal(folder / "cpu.json") as two:
            return Prefixes((one.entries, two.entries))

    return Reader(((path, LINES), (other, LINES)), read, True)


LINES = (mutate.of_json_lines, mutate.of_json_lines, mutate.of_bytes)


@dataclass(frozen=True)
class Prefixes:
    """Entries of journals: fewer of them are right, too; others are not."""

    journals: tuple[list[Any], ...]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Prefixes)
        pairs = zip(self.journals, other.journals, strict=True)
        return all(one[: len(two)] == two[: len(one)] for one, two in pairs)


def _tiny() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


TENSORS = (mutate.of_safetensors, mutate.of_bytes)


@reader("checkpoints", 8)
def checkpoint(folder: Path) -> Reader:
    import torch

    from deploynas.nn.state import digest
    from deploynas.train.checkpoint import load_checkpoint, save_checkpoint

    path, module = folder / "checkpoint.safetensors", _tiny()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    save_checkpoint(path, "recipe", 3, module, optimizer)

    def read() -> object:
        module = _tiny()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        step = load_checkpoint(path, "recipe", module, optimizer)
        state = optimizer.state_dict()["state"]
        return step, digest(module.state_dict()), [digest(state[i]) for i in sorted(state)]

    return Reader(((path, TENSORS),), read, True)


@reader("weights", 5)
def weights(folder: Path) -> Reader:
    from deploynas.nn.state import digest
    from deploynas.train.checkpoint import load_weights, save_weights

    path = save_weights(folder / "w.safetensors", _tiny())

    def read() -> object:
        module = _tiny()
        load_weights(path, module)
        return digest(module.state_dict())

    return Reader(((path, TENSORS),), read, True)


@reader("weights of others", 5)
def published(folder: Path) -> Reader:
    import torch
    from safetensors.torch import save_file

    from deploynas.nn import ofa_weights
    from deploynas.nn.state import digest

    state = _tiny().state_dict()
    torch.save({"state_dict": state}, folder / "w.pth")
    save_file(state, folder / "w.safetensors")
    files = (
        (folder / "w.pth", (mutate.of_zip, mutate.of_bytes)),
        (folder / "w.safetensors", TENSORS),
    )
    return Reader(files, lambda: [digest(ofa_weights.read_state(path)) for path, _ in files])


def _network() -> list[Any]:
    from deploynas import spaces

    space = spaces.space("mobile-small", 10, 1, [20])
    return list(space.layers(space.smallest()[0]))


MODEL = (mutate.of_onnx, mutate.of_onnx, mutate.of_bytes)


@reader("ONNX files", 10)
def onnx_files(folder: Path) -> Reader:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from deploynas.graph import RandomWeights, write_model
    from deploynas.spaces import Layer
    from deploynas.spaces.layers import chain
    from deploynas.workflows.inspect import inspect_model

    small = write_model(
        folder / "small.onnx", chain([Layer("conv", 3, 4, 8, 8, kernel_size=3)]), RandomWeights()
    )
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    value = helper.make_tensor_value_info
    bodies = [
        helper.make_graph(
            [helper.make_node(kind, ["x", "w"], [f"{kind}y"])], kind, [],
            [value(f"{kind}y", TensorProto.FLOAT, [1, 4])],
        )
        for kind in ("MatMul", "Gemm")
    ]  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])],
        "g", [value("x", TensorProto.FLOAT, [1, 4]), value("c", TensorProto.BOOL, [])],
        [value("y", TensorProto.FLOAT, [1, 4])], [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "if.onnx")
    apart = onnx.load(small)
    onnx.save(
        apart, folder / "apart.onnx", save_as_external_data=True, location="apart.data",
        size_threshold=0,
    )  # fmt: skip
    models = [small, folder / "if.onnx", folder / "apart.onnx"]
    files = [(path, MODEL) for path in models]
    return Reader(
        (*files, (folder / "apart.data", (mutate.of_bytes,))),
        lambda: [inspect_model(path) for path in models],
    )


def _of_runtime(name: str, folder: Path, *, opens: bool) -> Reader:
    """A runtime's own files: read as text and tables here, or opened by it in a worker."""
    from deploynas.check.model_file import RuntimeFile
    from deploynas.graph import RandomWeights, write_model
    from deploynas.runtimes import RUNTIMES
    from deploynas.workflows.inspect import inspect_model

    model = write_model(folder / "model.onnx", _network(), RandomWeights())
    path = RUNTIMES.load(name).convert(model, folder)
    model.unlink()
    text = (mutate.of_lines, mutate.of_lines, mutate.of_bytes)
    files = tuple(
        (one, text if one.suffix in (".param", ".xml") else (mutate.of_bytes,))
        for one in sorted(folder.iterdir())
    )
    return Reader(
        files,
        lambda: RuntimeFile(path).inputs if opens else inspect_model(path),
    )


@reader("LiteRT files", 3)
def litert(folder: Path) -> Reader:
    return _of_runtime("litert", folder, opens=False)


for _name in ("litert", "ncnn", "openvino"):
    reader(f"{_name}, opened", 0.06)(partial(_of_runtime, _name, opens=True))


@reader("onnxruntime, opened", 0.06)
def sessions(folder: Path) -> Reader:
    from deploynas.device import LocalDevice
    from deploynas.graph import RandomWeights, write_model

    path = write_model(folder / "model.onnx", _network(), RandomWeights())
    return Reader(((path, MODEL),), lambda: LocalDevice().inputs(path))


@reader("spaces", 5)
def tables(folder: Path) -> Reader:
    from deploynas import spaces

    path = folder / "own.toml"
    shipped = ROOT / "deploynas" / "spaces" / "tables" / "mobile-small.toml"
    path.write_bytes(shipped.read_bytes())

    def read() -> object:
        found = spaces.space(str(path))
        return found.spec, found.macs(found.largest()).tolist()

    return Reader(((path, (mutate.of_lines, mutate.of_lines, mutate.of_bytes)),), read)


@reader("architectures", 6)
def architectures(folder: Path) -> Reader:
    from deploynas import spaces
    from deploynas.workflows.inspect import inspect_layers

    spec: dict[str, Any] = {
        "name": "mobile-small", "num_classes": 10, "in_channels": 1, "resolutions": None
    }  # fmt: skip
    space = spaces.space(**spec)
    (record,) = space.decode(space.smallest())
    path = folder / "arch.json"
    path.write_text(json.dumps(record))
    return Reader(((path, JSON),), lambda: inspect_layers(path, spec, None, None))


@reader("block lists", 4)
def block_lists(folder: Path) -> Reader:
    from deploynas.nn import load_net

    path = folder / "net.config"
    path.write_text(json.dumps(NET))
    return Reader(((path, JSON),), lambda: [str(node.layer.key) for node in load_net(path).nodes])


def _conv(kind: str, **more: Any) -> dict[str, Any]:
    return {"name": kind, "use_bn": True, "act_func": "relu6", **more}


NET = {
    "name": "ProxylessNASNets",
    "bn": {"momentum": 0.1, "eps": 1e-3},
    "first_conv": _conv("ConvLayer", kernel_size=3, stride=2, in_channels=3, out_channels=8),
    "blocks": [
        {
            "name": "MobileInvertedResidualBlock",
            "mobile_inverted_conv": {
                "name": "MBInvertedConvLayer", "in_channels": 8, "out_channels": 8,
                "kernel_size": 3, "stride": 1, "expand_ratio": 2,
            },
            "shortcut": {"name": "IdentityLayer", "in_channels": 8, "out_channels": 8},
        }
    ],
    "feature_mix_layer": _conv("ConvLayer", kernel_size=1, stride=1, in_channels=8,
                               out_channels=16),
    "classifier": {"name": "LinearLayer", "in_features": 16, "out_features": 4, "bias": True},
}  # fmt: skip


@reader("image folders", 6)
def images(folder: Path) -> Reader:
    from PIL import Image

    from deploynas.data import load_dataset

    files = []
    formats = ("png", "jpeg", "bmp", "gif", "webp", "tiff", "ppm", "png")
    for place, name in enumerate(("left", "right")):
        (folder / name).mkdir()
        for i, kind in enumerate(formats):
            pixels = RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            path = folder / name / f"{i}.{kind}"
            Image.fromarray(pixels[:, :, 0] if place else pixels).save(path)
            files.append((path, (mutate.of_bytes,)))

    def read() -> object:
        found = load_dataset(folder, max_size=16)
        return found.fingerprint

    return Reader(tuple(files), read)


@reader("IDX files", 3)
def idx(folder: Path) -> Reader:
    from deploynas.data import load_dataset

    files = []
    for name, shape in (
        ("train-images-idx3-ubyte", (60, 12, 12)), ("train-labels-idx1-ubyte", (60,)),
        ("t10k-images-idx3-ubyte", (20, 12, 12)), ("t10k-labels-idx1-ubyte", (20,)),
    ):  # fmt: skip
        head = b"\0\0\x08" + bytes([len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        values = np.arange(shape[0]) % 4 if len(shape) == 1 else RNG.integers(0, 256, shape)
        path = folder / (name + ".gz" * ("t10k" in name))
        content = head + values.astype(np.uint8).tobytes()
        path.write_bytes(gzip.compress(content) if path.suffix else content)
        packed = (mutate.of_gzip(mutate.of_bytes),)
        files.append((path, packed if path.suffix else (mutate.of_bytes,)))
    return Reader(tuple(files), lambda: load_dataset(folder).fingerprint)


@reader("class lists", 2)
def labels(folder: Path) -> Reader:
    from deploynas.check.accuracy import read_classes

    path = folder / "labels.txt"
    path.write_text("ankle boot\nbag\ncoat\ndréss\n")
    return Reader(((path, (mutate.of_lines, mutate.of_bytes)),), lambda: read_classes(path))


@reader("arrays", 4)
def arrays(folder: Path) -> Reader:
    from deploynas.check.inputs import read_inputs
    from deploynas.onboard.runtime import Input

    array = RNG.standard_normal((3, 2, 4, 4)).astype(np.float32)
    np.save(folder / "x.npy", array)
    np.savez(folder / "x.npz", x=array)
    files = (
        (folder / "x.npy", (mutate.of_bytes,)),
        (folder / "x.npz", (mutate.of_zip,)),
    )
    wanted = [Input("x", [1, 2, 4, 4], "float32")]
    return Reader(
        files,
        lambda: [
            [a.tobytes() for a in read_inputs([f"x={path}"], wanted, Path("m"))["x"]]
            for path, _ in files
        ],
    )


@reader("results of a bundle", 2)
def results(folder: Path) -> Reader:
    import hashlib

    from deploynas import spaces
    from deploynas.profile import DeviceProfile, bundle

    path = folder / "pi.results.jsonl"
    found = spaces.space("mobile-small", 2, 1, [16])
    plan, _ = bundle._plan(found, "fp32", bundle.OnDevice(), 1.0, 1.0)
    first = {
        "plan": hashlib.sha256(json.dumps(plan).encode()).hexdigest(), "precision": "fp32",
        "runtime": "onnxruntime", "threads": 1, "provider": None, "budget_minutes": 1.0,
        "soft_seconds": 1.0, "space": found.spec,
        "identity": DeviceProfile.read(FORMATS / "profile.json").identity.model_dump(),
    }  # fmt: skip
    text = json.dumps(first).encode() + b"\n"
    end = {"end": hashlib.sha256(text).hexdigest()}
    path.write_bytes(text + json.dumps(end).encode() + b"\n")

    def read() -> object:
        space, precision, device = bundle.read_results(path)
        return space.spec, precision, device.identity

    return Reader(((path, LINES),), read, True)


@reader("files written together", 2)
def together(folder: Path) -> Reader:
    from deploynas.artifacts import read_json

    first, note = folder / "a.json", folder / ".a.json.whole"
    first.write_text("1")
    note.write_text(json.dumps({"files": ["a.json", "b"]}))

    def read() -> object:
        (folder / ".b.next").write_text("b")
        return read_json(first)

    return Reader(((note, JSON), (first, JSON)), read)


def main() -> None:
    """All readers, each in a process that is begun again after what ended it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--only", choices=MAKERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(*options.child, options.seed)
    if options.index is not None:
        with tempfile.TemporaryDirectory() as folder:
            (one,) = tries(options.only, Path(folder), options.seed, [options.index])
        return print(json.dumps(one, indent=1))
    names = [options.only] if options.only else list(MAKERS)
    total = sum(MAKERS[name][1] for name in names)
    rows = []
    for name in names:
        count = math.ceil(options.inputs * MAKERS[name][1] / total)
        rows.append(fuzz(name, count, options.seed))
        if not options.json:
            row = rows[-1]
            print(
                f"{name}: {row['inputs']:,} inputs, {row['refused']:,} refused, "
                f"{row['read']:,} read, {len(row['failures'])} failures", flush=True,
            )  # fmt: skip
            for failure in row["failures"][:5]:
                print(f"  --index {failure['index']}: {failure['said']}", flush=True)
    num = sum(len(row["failures"]) for row in rows)
    if options.json:
        print(json.dumps({"readers": rows, "num_failures": num}, indent=1))
    else:
        print(f"{sum(row['inputs'] for row in rows):,} inputs, {num} failures")
    sys.exit(3 if num else 0)


def fuzz(name: str, count: int, seed: int) -> dict[str, Any]:
    """Some inputs of a reader: numbers of refusals and successes, and every failure."""
    row: dict[str, Any] = {"reader": name, "inputs": count, "refused": 0, "read": 0}
    failures: list[dict[str, Any]] = []
    at = 0
    while at < count:
        command = [sys.executable, __file__, "--seed", str(seed), "--child", name, str(at),
                   str(count)]  # fmt: skip
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        ended = "was not begun"
        for line in process.stdout:
            one = json.loads(line)
            at = one["index"] + 1
            if one["outcome"] == "failed":
                failures.append(one)
            else:
                row[one["outcome"]] += 1
        code = process.wait()
        if code or at < count:
            ended = f"the interpreter ended with {code}"
            failures.append({"index": at, "outcome": "failed", "said": ended})
            at += 1
            if len(failures) > 100:
                break
    return row | {"failures": failures}


def child(name: str, first: str, end: str, seed: int) -> None:
    """Print a line an input; whatever else is said goes nowhere."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        for one in tries(name, Path(folder), seed, range(int(first), int(end))):
            print(json.dumps(one), file=out)


def tries(name: str, folder: Path, seed: int, indices: Any) -> Iterator[dict[str, Any]]:
    """Damage one of a reader's files for each index, read it, and put it right again."""
    warnings.simplefilter("ignore")
    own = folder / "own"
    own.mkdir()
    os.chdir(own)
    made = MAKERS[name][0](own)
    contents = {one: one.read_bytes() for one, _ in made.files}
    expected = made.read()

    def restore() -> None:
        for one, content in contents.items():
            one.write_bytes(content)

    restore()
    assert made.read() == expected
    around = sorted(folder.iterdir())
    for index in indices:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
        path, mutations = made.files[int(rng.integers(len(made.files)))]
        damaged = mutations[int(rng.integers(len(mutations)))](contents[path], rng)
        restore()
        path.write_bytes(damaged)
        outcome, said = attempt(made, expected, signed=signs_again(damaged))
        if sorted(folder.iterdir()) != around:
            outcome, said = "failed", f"wrote outside: {sorted(folder.iterdir())}"
        yield {"index": index, "outcome": outcome, "said": said}


def attempt(made: Reader, expected: object, *, signed: bool) -> tuple[str, str]:
    """Refused, read or failed, and why."""
    from deploynas.errors import DeploynasError

    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {MAX_SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(MAX_SECONDS)
    try:
        found = made.read()
    except DeploynasError as error:
        text = str(error)
        return ("failed", f"more than a line: {text!r}") if "\n" in text else ("refused", text)
    except BaseException:
        lines = traceback.format_exc().splitlines()
        where = [line.strip() for line in lines if "deploynas/" in line][-3:]
        return "failed", " | ".join([*where, lines[-1][:200]])
    finally:
        signal.alarm(0)
    if made.strict and not signed and found != expected:
        return "failed", "read, and it is not what was written"
    return "read", ""


def signs_again(damaged: bytes) -> bool:
    """Whether the damage has another digest, that fits it."""
    from deploynas.artifacts import DIGEST, digest

    try:
        document = json.loads(_plain(damaged))
        return bool(document[DIGEST] == digest(document))
    except (ValueError, KeyError, TypeError, EOFError, OSError, zlib.error):
        return False


def _plain(content: bytes) -> bytes:
    return gzip.open(io.BytesIO(content)).read() if content[:2] == b"\x1f\x8b" else content


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    main()
