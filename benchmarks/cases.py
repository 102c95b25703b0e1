"""Inputs as people have them, through the verbs: which are read right, or refused in a line.

``--cases DIR`` is a folder of small models, architectures and a script that makes image folders;
each case below says what is right. Models and architectures go through ``deploynas check`` and
``inspect``, image folders through the reader that all verbs share.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploynas.data import ImageDataset, load_dataset
from deploynas.errors import DeploynasError

VERB = [sys.executable, "-c", "from deploynas.cli.main import main; main()"]
SPACE = ["--space", "ofa-mbv3-w1.0"]
BIG_SECONDS = 1_800


@dataclass(frozen=True)
class Answer:
    """What a verb said."""

    code: int
    document: dict[str, Any]
    said: str

    @property
    def error(self) -> str:
        """The one line of a refusal; empty where there is none."""
        return str(self.document.get("error", {}).get("message", ""))

    def gate(self, name: str) -> str:
        """Verdict and reason of a gate."""
        for gate in self.document.get("gates", []):
            if gate["name"] == name:
                return f"{gate['verdict']}: {gate['reason']}"
        return ""


def run(*arguments: str | Path) -> Answer:
    """A verb, as a person runs it."""
    done = subprocess.run(
        [*VERB, *map(str, arguments), "--json", "--quiet"],
        capture_output=True, text=True, check=False, timeout=BIG_SECONDS,
    )  # fmt: skip
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = {}
    return Answer(done.returncode, document, done.stdout + done.stderr)


def refuses(*words: str) -> Callable[[Answer], bool]:
    """One line with all the words, and no traceback."""
    return lambda a: a.code == 1 and all(w in a.error for w in words) and "Traceback" not in a.said


def passes(*words: str) -> Callable[[Answer], bool]:
    """Measured within every limit; the words are in the outputs gate."""
    return lambda a: (
        a.code == 0
        and a.document["latency_ms"]["median"] > 0
        and all(word in a.gate("outputs") for word in words)
    )


def counts(macs: int | None = None, weight_bytes: int | None = None, **more: Any) -> Any:
    """Inspected, with these totals."""

    def judge(a: Answer) -> bool:
        wanted = {"macs": macs, "weight_bytes": weight_bytes, **more}
        return a.code == 0 and all(
            a.document.get(key) == value for key, value in wanted.items() if value is not None
        )

    return judge


def models(cases: Path, made: Path) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Name, command line, and whether the answer is right."""
    ids, positive = made / "ids.npy", made / "positive.npy"
    np.save(ids, np.arange(16)[None] % 2)
    np.save(positive, np.full((1, 3, 64, 64), 2.0, np.float32))
    for kind in ("int64", "int32", "bool", "fp16"):
        yield f"ints: {kind}", ("check", cases / f"ints/in_{kind}.onnx"), passes()
    yield (
        "ints: real ids",
        ("check", cases / "ints/in_int64.onnx", "--inputs", f"x={ids}"),
        passes("finite"),
    )
    for kind in ("sequence", "zipmap"):
        yield f"outputs: {kind}", ("check", cases / f"outputs/out_{kind}.onnx"), passes()
    for kind in ("qop", "qopt", "opt"):
        yield (
            f"quant: {kind}",
            ("inspect", cases / f"quant/{kind}.onnx"),
            lambda a: a.code == 0 and a.document["unknown_shapes"] > 0 and a.document["uncounted"],
        )
    for name, shape in (("dim-1", "1,3,64,64"), ("dim0", "1,3,64,64"), ("empty_side", "2,3")):
        path = cases / f"dims/{name}.onnx"
        told = refuses("dynamic shape", "--input-shape")
        yield f"dims: {name} inspected", ("inspect", path), told
        yield f"dims: {name} checked", ("check", path), told
        macs = 0 if name == "empty_side" else 884_736
        yield (f"dims: {name} as said", ("inspect", path, "--input-shape", shape), counts(macs))
    path = cases / "range/needs_positive.onnx"
    yield "range: noise told", ("check", path), passes("the input was noise", "--inputs")
    yield "range: real", ("check", path, "--inputs", f"x={positive}"), passes("are finite")
    path = cases / "range/no_input.onnx"
    yield "range: no input", ("check", path), passes()
    yield (
        "range: no input, a shape", ("check", path, "--input-shape", "1,3"),
        refuses("takes no input"),
    )  # fmt: skip
    data = made / "four"
    rng = np.random.default_rng(0)
    from PIL import Image

    for name in "abcd":
        (data / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / name / f"{i}.png")
    yield (
        "nhwc: read", ("check", cases / "nhwc/nhwc.onnx", "--data", data),
        lambda a: a.code == 0 and "accuracy" in a.document and a.document["preprocessing"],
    )  # fmt: skip
    for verb in ("check", "inspect"):
        yield f"lfs: {verb}", (verb, cases / "lfs/p.onnx"), refuses("Git LFS pointer", "lfs pull")
    yield "names: MODEL.ONNX", ("inspect", cases / "names/MODEL.ONNX"), counts(11_206_656)
    yield (
        "names: all renamed",
        ("check", cases / "names/renamed_wide.onnx", "--baseline", made / "narrow.onnx"),
        lambda a: (
            a.code == 3
            and a.document["slower_layers"]
            and all(layer["before_ms"] != 0 for layer in a.document["slower_layers"])
        ),
    )
    path = beside(cases / "extweights/m.onnx", made / "ext", "w.bin", 524_288)
    yield (
        "extweights: size", ("check", path, "--max-size", "100000"),
        lambda a: a.code == 3 and "0.5247 MB" in a.gate("size"),
    )  # fmt: skip
    yield ("extweights: sent", ("check", path, "--device", f"exec:{sys.executable}"), passes())
    lone = made / "lone" / "m.onnx"
    lone.parent.mkdir()
    shutil.copy(cases / "extweights/m.onnx", lone)
    yield "extweights: missing", ("check", lone), refuses("w.bin", "not beside it")
    path = beside(cases / "big/big.onnx", made / "big", "big.bin", 2_304_000_000)
    yield "big: inspect", ("inspect", path), counts(576_000_000, 2_304_000_000)
    yield (
        "big: check", ("check", path),
        lambda a: a.code in (0, 4) or (a.code == 1 and "memory" in a.error),
    )  # fmt: skip
    archs = {
        "ok": 207_920_000, "scalar": 154_990_000, "unused_differ": 154_990_000,
        "unused_zero": 154_990_000, "floats": 295_030_000, "wid": 295_030_000,
    }  # fmt: skip
    for name, near in archs.items():
        yield (
            f"archs: {name}", ("inspect", cases / f"archs/{name}.json", *SPACE),
            lambda a, near=near: a.code == 0 and abs(a.document["macs"] - near) < 1e4,
        )  # fmt: skip
    wrong = {
        "bools": ("kernel_size", "[3, 5, 7]"), "depth1": ("depth", "[2, 3, 4]"),
        "expand5": ("expand_ratio", "[3, 4, 6]"), "kernel9": ("block4.kernel_size", "got 9"),
        "list": ("JSON object",), "nan": ("expand_ratio", "nan"), "nod": ("'d'",),
        "null": ("'ks'",), "short": ("20 values", "10"), "strings": ("kernel_size", "'3'"),
        "toomany": ("20 values", "21"),
    }  # fmt: skip
    for name, words in wrong.items():
        yield (
            f"archs: {name}",
            ("inspect", cases / f"archs/{name}.json", *SPACE),
            refuses(*words),
        )


def beside(model: Path, folder: Path, name: str, size: int) -> Path:
    """A copy of a model with a file of zeros beside it."""
    folder.mkdir()
    shutil.copy(model, folder)
    with (folder / name).open("wb") as file:
        file.truncate(size)
    return folder / model.name


def narrow(wide: Path, path: Path) -> None:
    """The first half of the graph under other names: what the wide one is slower than."""
    import onnx

    model = onnx.load(wide)
    for number, node in enumerate(model.graph.node):
        node.name = f"other{number}"
    del model.graph.node[len(model.graph.node) // 2 :]
    model.graph.output[0].name = model.graph.node[-1].output[0]
    onnx.save(model, path)


def pixels(data: ImageDataset) -> np.ndarray:
    """All training images."""
    return data.train.batch(np.arange(len(data.train)), data.size, data.size)


FOLDERS: dict[str, Callable[[ImageDataset], bool]] = {
    # half of the arrows are stored turned: upright they are two pictures, but for JPEG's noise
    "c1": lambda d: all(
        np.ptp((pixels(d)[d.train.labels == k] > 128).mean(axis=0)) == 1
        and np.isin((pixels(d)[d.train.labels == k] > 128).mean(axis=0), (0, 1)).mean() > 0.9
        for k in (0, 1)
    ),
    "c2": lambda d: pixels(d)[:, :8].max() == 0 and pixels(d)[:, 8:24, 8:24].max() == 200,
    "c3_12bit": lambda d: 120 < pixels(d).mean() < 136 and "4,095" in d.warnings[0],
    "c3_mixed": lambda d: 120 < pixels(d).mean() < 136,
    "c3_dark": lambda d: pixels(d).max() > 200 and "65,535" in d.warnings[0],
    "c5_jfif": lambda d: len(d.train) == 48,
    "c5_wrong": lambda d: len(d.train) == 48,
    "c5_cmyk": lambda d: d.channels == 3 and pixels(d).max() == 200,
    "c5_mpo": lambda d: len(d.train) == 24,
    "c5_exts": lambda d: len(d.train) + len(d.val) + len(d.test) == 61 or bool(d.warnings),
    "c7_num": lambda d: d.classes == tuple(map(str, range(12))),
    "c7_case": lambda d: d.classes == ("Bee", "Zebra", "ant"),
    **{
        f"c4_{name}": lambda d: d.classes == ("a", "b") and len(d.test) > 0
        for name in (
            "tvt",
            "tv",
            "tvalidation",
            "Train",
            "trainTEST",
            "training",
            "tdev",
            "nested",
            "macosx",
            "zip",
            "links",
            "hidden",
        )
    },  # fmt: skip
}
REFUSED = {
    "c4_empty": ("zzz", "no images"), "c4_oneclass": ("only the class",),
    "c6": ("5 of 60 images",), "caf\udce9": ("not UTF-8",),
}  # fmt: skip


def folders(cases: Path, made: Path) -> Iterator[tuple[str, bool, str]]:
    """Name, whether it is right, and what was said."""
    subprocess.run(
        [sys.executable, cases.resolve() / "make_folders.py"], cwd=made, check=True,
        capture_output=True,
    )  # fmt: skip
    for name, judge in FOLDERS.items():
        try:
            data = load_dataset(made / name)
            yield name, bool(judge(data)), "; ".join(data.warnings)
        except DeploynasError as error:
            yield name, False, str(error)
    for name, words in REFUSED.items():
        try:
            load_dataset(made / name)
            yield ascii(name), False, "read"
        except DeploynasError as error:
            right = all(word in str(error) for word in words)
            right &= name != "c6" or len(error.details) == 5
            yield ascii(name), right, str(error)


def main() -> None:
    """Print a line a case, and how many are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="leave out the model over 2 GB")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(name: str, right: bool, said: str) -> None:
        rows.append({"case": name, "right": right, "said": said})
        print(
            f"{'right' if right else 'WRONG'}  {name:32}{said[:110]}", file=sys.stderr, flush=True
        )

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        (made / "folders").mkdir()
        for row in folders(asked.cases, made / "folders"):
            add(*row)
        narrow(asked.cases / "names/renamed_wide.onnx", made / "narrow.onnx")
        for name, arguments, judge in models(asked.cases, made):
            if asked.quick and name == "big: check":
                continue
            answer = run(*arguments)
            verdict = f"{answer.document.get('verdict', '')} {answer.gate('outputs')}".strip()
            add(name, bool(judge(answer)), answer.error or verdict or f"exit {answer.code}")
    right = sum(row["right"] for row in rows)
    if asked.json:
        print(json.dumps({"right": right, "cases": len(rows), "rows": rows}, indent=1))
    else:
        print(f"{right} of {len(rows)} cases are right")


if __name__ == "__main__":
    main()
