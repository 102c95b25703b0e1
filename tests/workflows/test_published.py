"""ImageNet's own images: they calibrate, and others among them measure the finalists."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import deploynas as dn
from deploynas.data.imagenet import load_imagenet, load_unlabelled
from deploynas.errors import InvalidInputError
from deploynas.nn import Supernet
from deploynas.search import DataRecord
from deploynas.search.imagenet import imagenet_predictor
from deploynas.workflows.images import data_of
from deploynas.workflows.published import Published, pictures

SPACE = dn.space("ofa-mbv3-w1.0", resolutions=[224])


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A thousand classes of four images, each of one colour that tells its class."""
    root = tmp_path_factory.mktemp("imagenet")
    for label in range(1000):
        folder = root / "val" / f"n{label:08}"
        folder.mkdir(parents=True)
        for i in range(4):
            colour = (label // 100 * 25, label // 10 % 10 * 25, label % 10 * 25)
            Image.new("RGB", (20, 16), colour).save(folder / f"{i}.png")
    return root


def told(images):
    """The class that an image's colour tells."""
    return (images[:, 4, 4].astype(int) // 25) @ [100, 10, 1]


@pytest.mark.slow
def test_labels_follow_the_sorted_folders(imagenet):
    images, labels = load_imagenet(imagenet, 8, 3)
    assert images.shape == (3000, 8, 8, 3)
    assert np.array_equal(np.bincount(labels), np.full(1000, 3))
    assert np.array_equal(told(images), labels)
    again, _ = load_imagenet(imagenet / "val", 8, 3)
    assert np.array_equal(again, images)


@pytest.mark.slow
def test_no_image_calibrates_and_judges(imagenet):
    calibration, validation = pictures(8, None, imagenet, 0, lambda text, share: None)
    images, labels = validation
    assert len(calibration) == 2000
    assert len(images) == len(labels) == 2000
    assert np.array_equal(told(images), labels)
    counts = np.bincount(told(np.concatenate([calibration, images])))
    assert np.array_equal(counts, np.full(1000, 4))


def test_int8_of_a_published_network_calibrates_and_judges_by_different_images(imagenet):
    record = DataRecord(
        name="imagenet", source="", fingerprint="", classes=tuple(map(str, range(1000))),
        channels=3, size=8, mean=(0.5,) * 3, std=(0.2,) * 3,
    )  # fmt: skip
    trained = SimpleNamespace(data=record)
    found = data_of(trained.data, imagenet)
    assert (len(found.train), len(found.val), found.num_classes) == (1000, 1000, 1000)
    assert np.array_equal(told(found.val.images), found.val.labels)
    counts = np.bincount(told(np.concatenate([found.train.images, found.val.images])))
    assert np.array_equal(counts, np.full(1000, 2))
    with pytest.raises(InvalidInputError, match="ImageNet's validation images"):
        data_of(trained.data, None)


def test_the_crop_is_that_of_the_published_networks(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[4:60, 4:60] = 255  # 56 of 64 px: what a crop of 0.875 keeps
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (load_unlabelled(tmp_path, 56, 10) == 255).all()


def test_folders_without_images(tmp_path):
    with pytest.raises(InvalidInputError, match="holds no images"):
        load_unlabelled(tmp_path, 8, 10)
    for name in ("broken", "also"):
        (tmp_path / f"{name}.jpg").write_bytes(b"no image")
    Image.new("RGB", (9, 9)).save(tmp_path / "fine.png")
    with pytest.raises(InvalidInputError, match="2 of 3 images"):
        load_unlabelled(tmp_path, 8, 10)


@pytest.mark.slow
def test_measured_where_there_are_images():
    torch.manual_seed(0)
    supernet = Supernet(SPACE).eval()
    images = np.random.default_rng(0).integers(0, 256, (12, 224, 224, 3), dtype=np.uint8)
    arch = SPACE.smallest()
    predictor = imagenet_predictor(SPACE)
    network = Published(supernet, predictor, images, None, print).extract(arch[0])
    mean = network.layers[0].bn.running_mean
    assert not torch.allclose(mean, torch.zeros_like(mean))  # recalibrated
    from deploynas.data import normalise
    from deploynas.data.imagenet import MEAN, STD

    with torch.no_grad():
        labels = network(torch.from_numpy(normalise(images, MEAN, STD))).argmax(1).numpy()
    labels[:3] = (labels[:3] + 1) % 1000
    evaluator = Published(supernet, predictor, images, (images, labels), lambda text, share: None)
    assert evaluator.kind == "measured"
    assert evaluator.final(arch)[0] == 0.75
    assert evaluator.quick(arch)[0] == predictor.predict(arch)[0]
