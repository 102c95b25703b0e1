"""Images on their way into a network: shifts, mirrors, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploynas.data import Split, normalise, resize
from deploynas.data.sources import load_digits
from deploynas.train import Batches
from deploynas.train.resizing import resized


def pixels(n, height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), np.uint8)


@pytest.mark.parametrize(
    ("source", "target"), [(32, 24), (32, 28), (28, 20), (8, 28), (32, 48), (64, 8)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_gives_pillows_bytes(source, target, channels):
    images = pixels(6, source, source, channels)
    images[0], images[1] = 0, 255
    found = resized(torch.from_numpy(images), target).numpy()
    np.testing.assert_array_equal(found, resize(images, target))


def test_batches_are_normalised_and_channels_last():
    digits = load_digits((), seed=0, max_size=64)
    batches = Batches(digits, digits.val, torch.device("cpu"))
    rows = np.array([5, 0, 3])
    found = batches.images(rows, 20)
    expected = normalise(resize(digits.val.images, 20)[rows], digits.mean, digits.std)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_batches_need_not_be_square():
    digits = load_digits((), seed=0, max_size="24x40")
    batches = Batches(digits, digits.val, torch.device("cpu"))
    rows = np.array([5, 0, 3])
    found = batches.images(rows, "12x20")
    expected = normalise(resize(digits.val.images, 12, 20)[rows], digits.mean, digits.std)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    (images,) = batches.calibration("20x12", 4)
    assert images.shape == (4, 1, 20, 12)


def test_images_that_cannot_be_written_to_are_taken():
    digits = load_digits((), seed=0, max_size=64)
    images = digits.val.images.copy()
    images.flags.writeable = False
    batches = Batches(digits, Split(images, digits.val.labels), torch.device("cpu"))
    assert len(batches.images(np.arange(4), digits.size)) == 4
