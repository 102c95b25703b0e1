"""The conformance of sources: what ships keeps it, and a broken promise is told."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deploynas
from deploynas.data import Source, Split, resize
from deploynas.data.sources import READERS
from deploynas.testing import check_reader, check_source

EXAMPLE = Path(__file__).parents[2] / "examples" / "extending" / "rows.py"


def images(n=30, height=16, width=16, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), np.uint8)


def labels(n=30):
    return np.arange(n) % 3


@pytest.fixture
def folder(tmp_path):
    """Of the example's format."""
    np.save(tmp_path / "images.npy", images())
    np.save(tmp_path / "labels.npy", labels())
    return tmp_path


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("rows", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_a_set_in_memory(size, channels):
    check_source(Split(images(30, *size, channels), labels()))


class Plain(Source):
    """The least that a source says of itself."""

    def __init__(self, pixels):
        self.labels = labels(len(pixels))
        self.pixels = pixels
        _, self.height, self.width, self.channels = pixels.shape

    def batch(self, rows, height, width):
        return resize(self.pixels[rows], height, width)

    def hash_into(self, digest):
        digest.update(self.pixels.tobytes())


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_derived_from_a_source(channels):
    """Parts and colours of a source that has neither of its own."""
    source = Plain(images(channels=channels))
    check_source(source)
    part = source.take(np.array([4, 2, 2]))
    check_source(part)
    check_source(part.with_channels(4 - channels))
    memory = Split(source.pixels, source.labels)
    rows = np.array([2, 0])
    for other in (1, 3):
        found = part.with_channels(other).batch(rows, 8, 8)
        wanted = memory.take(np.array([4, 2, 2])).with_channels(other).batch(rows, 8, 8)
        assert (
            np.abs(found.astype(int) - wanted).max() <= 1
        )  # grey of the resized, or resized grey


class Shifting(Plain):
    def batch(self, rows, height, width):
        return (
            super().batch(rows, height, width)
            + np.arange(len(rows), dtype=np.uint8)[:, None, None, None]
        )


class Floats(Plain):
    def batch(self, rows, height, width):
        return super().batch(rows, height, width).astype(float)


class Turned(Plain):
    def batch(self, rows, height, width):
        return super().batch(rows, width, height)


class Tolerant(Plain):
    def batch(self, rows, height, width):
        return super().batch(rows, max(1, height), max(1, width))


class Nameless(Plain):
    def take(self, rows):
        return Nameless(self.pixels[: len(rows)])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Shifting, "depends on what else is asked for"),
        (Floats, "pixels are float64, not uint8"),
        (Turned, "a batch has shape"),
        (Tolerant, "are not refused"),
        (Nameless, "a part has other"),
    ],
)
def test_a_broken_promise_is_told(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_source(kind(images()))


def test_the_readers_that_ship(tmp_path):
    from PIL import Image

    for i, pixels in enumerate(images(36)):
        place = tmp_path / f"class{i % 3}"
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")
    found = check_reader(READERS.load("folder"), tmp_path)
    assert found.classes == ("class0", "class1", "class2")


def test_the_example_reads_from_disk(example, folder):
    found = check_reader(example.READER, folder)
    assert (len(found.train), len(found.val), len(found.test)) == (24, 3, 3)
    assert not found.train.in_memory
    assert not hasattr(found.train, "images")


def test_a_network_trains_on_what_stays_on_disk(example, folder):
    """As on the same images in memory, to the bit."""
    import torch

    from deploynas import spaces
    from deploynas.nn import build
    from deploynas.train import Recipe, train_network

    dataset = example.READER.load(folder, seed=0, max_size=64)
    rows = np.random.default_rng(0).permutation(30)[6:]
    held = Split(images()[rows], labels()[rows])
    space = spaces.space("mobile-small", 3, 3, [12])
    trained = []
    for source in (dataset.train, held):
        torch.manual_seed(0)
        network = build(space, space.smallest()[0])
        own = replace(dataset, train=source)
        train_network(network, own, Recipe(epochs=1, batch_size=8, augment_from=0))
        trained.append(network.state_dict())
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


SCRIPT = """
from pathlib import Path
import deploynas as dn
from deploynas.data import load_dataset
from deploynas.train import SupernetRecipe, train_supernet

dataset = load_dataset(Path("photos"))
print(dataset.classes, dataset.warnings, len(dataset.train), dataset.train.labels.tolist()[:3])
space = dn.space("mobile-small", dataset.num_classes, dataset.channels, [12])
recipe, steps = SupernetRecipe(epochs=1, batch_size=8), []
train_supernet(dn.Supernet(space), dataset, recipe, on_progress=steps.append)
print(len(steps), load_dataset(None).train.images.dtype)
"""


@pytest.mark.long
def test_a_reader_of_another_package_is_asked_first(folder, tmp_path):
    (folder / "photos").mkdir()
    for name in ("images.npy", "labels.npy"):
        (folder / name).rename(folder / "photos" / name)
    info = tmp_path / "numpyfolders-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpyfolders\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[deploynas.sources]\nrows = rows:READER\n")
    shutil.copy(EXAMPLE, tmp_path)
    package = str(Path(deploynas.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True,
        cwd=tmp_path, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), package])},
    )  # fmt: skip
    assert done.stderr == ""
    order = np.random.default_rng(0).permutation(30)[6:9] % 3
    assert done.stdout.splitlines() == [f"('0', '1', '2') () 24 {order.tolist()}", "3 uint8"]
