"""Augmentation: what is moved, operated on, erased and mixed, by draws that can be drawn again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from deploynas.data.sources import load_digits
from deploynas.train import Recipe, train_network
from deploynas.train.augment import OPERATIONS, STRONGEST, Augmentation, Augmented
from deploynas.train.batches import Batches
from deploynas.train.loop import StepImages


def pixels(n, height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), np.uint8)


def augmented(how, num_images, own=slice(None), seed=7):
    return Augmented(how, lambda stream: np.random.default_rng([seed, stream]), num_images, own)


@pytest.mark.parametrize("flip", [False, True])
def test_images_are_moved_as_a_reflected_border_would_move_them(flip):
    images = pixels(40, 12, 24, 3)
    how = Augmentation(moved=True, flip=flip)
    found = augmented(how, 40).pixels(torch.from_numpy(images)).numpy()
    rng = np.random.default_rng([7, 1])
    tops, lefts = rng.integers(0, 3, (40, 1)), rng.integers(0, 5, (40, 1))
    mirrored = rng.random(40) < 0.5 if flip else np.zeros(40, bool)
    assert mirrored.any() == flip
    padded = np.pad(images, ((0, 0), (1, 1), (2, 2), (0, 0)), mode="reflect")
    for i in range(40):
        top, left = int(tops[i, 0]), int(lefts[i, 0])
        part = padded[i, top : top + 12, left : left + 24]
        np.testing.assert_array_equal(found[i], part[:, ::-1] if mirrored[i] else part)


def test_a_part_of_a_batch_is_changed_as_the_whole():
    images = torch.from_numpy(pixels(10, 12, 12, 3))
    how = Augmentation(moved=True, flip=True, operations=9, erased=0.5)

    def changed(own):
        one = augmented(how, 10, own)
        return one.inputs(one.pixels(images[own]).permute(0, 3, 1, 2).float())

    whole = changed(slice(None))
    for first in range(2):
        own = slice(first, None, 2)
        assert torch.equal(changed(own), whole[own])


def test_nothing_is_changed_where_nothing_is_asked_for():
    images = torch.from_numpy(pixels(4, 8, 8, 1))
    one = augmented(Augmentation(flip=True), 4)
    assert one.pixels(images) is images
    x = torch.randn(4, 1, 8, 8)
    targets = torch.eye(4)
    assert one.inputs(x) is x
    assert one.targets(targets, 8, 8) is targets


def test_operations_are_those_of_pillow():
    """At half of their strength, on a smooth image: to a level or two."""
    from torchvision.transforms.v2 import functional

    across, down = np.meshgrid(np.linspace(30, 220, 32), np.linspace(0, 1, 32))
    image = np.stack([across, 255 * down, across * (1 - down)], axis=-1).astype(np.uint8)
    pil = Image.fromarray(image)
    bright, less = 1 + 0.9 * 0.5, 1 - 0.9 * 0.5
    expected = {
        1: (0.5, ImageOps.autocontrast(pil)),
        2: (0.5, ImageOps.equalize(pil)),
        3: (0.5, pil.rotate(-15, fillcolor=(128,) * 3)),
        8: (0.5, ImageOps.posterize(pil, 6)),
        9: (0.5, ImageOps.solarize(pil, 128)),
        10: (0.5, ImageEnhance.Color(pil).enhance(bright)),
        11: (-0.5, ImageEnhance.Contrast(pil).enhance(less)),
        12: (0.5, ImageEnhance.Brightness(pil).enhance(bright)),
        13: (0.5, ImageEnhance.Sharpness(pil).enhance(bright)),
    }
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    for place, (strength, wanted) in expected.items():
        found = OPERATIONS[place](functional, x, strength)[0].permute(1, 2, 0).numpy()
        error = np.abs(found.astype(int) - np.asarray(wanted).astype(int))
        assert np.mean(error <= 2) > 0.97, place
    moved = OPERATIONS[7](functional, x, 0.5)[0]
    assert torch.equal(moved[:, :, 7:], x[0, :, :, :-7])
    assert (moved[:, :, :7] == 128).all()
    moved = OPERATIONS[6](functional, x, -0.5)[0]
    assert torch.equal(moved[:, :-7], x[0, :, 7:])
    sheared = OPERATIONS[4](functional, x, 0.5)[0]
    assert torch.equal(sheared[:, 16], x[0, :, 16])  # the middle row stays
    assert not torch.equal(sheared[:, 0], x[0, :, 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_two_operations_are_drawn_an_image(channels):
    images = torch.from_numpy(pixels(400, 8, 8, channels))
    found = augmented(Augmentation(operations=STRONGEST), 400).pixels(images)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    same = (found == images).flatten(1).all(1).float().mean()
    assert same < 0.3  # identity twice, or what does nothing to noise


def test_boxes_are_erased_to_the_mean():
    x = torch.ones(2_000, 3, 20, 10)
    found = augmented(Augmentation(erased=0.4), 2_000).inputs(x)
    gone = found == 0
    assert (gone.all(1) == gone.any(1)).all()  # all channels alike
    area = gone[:, 0].flatten(1).float().mean(1)
    share = float((area > 0).float().mean())
    assert abs(share - 0.4) < 0.04
    assert float(area.max()) <= 0.38  # a third, in whole pixels
    assert abs(float(area[area > 0].mean()) - 0.175) < 0.02
    for one in gone[:50, 0]:  # a box: its rows are alike
        rows = one[one.any(1)]
        assert (rows == rows[:1]).all()


def test_mixup_mixes_images_and_targets_alike():
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 6, 6).contiguous()
    one = augmented(Augmentation(mixup=0.4), 4)
    kept = np.random.default_rng([7, 4]).beta(0.4, 0.4)
    torch.testing.assert_close(
        one.inputs(x)[:, 0, 0, 0], kept * x[:, 0, 0, 0] + (1 - kept) * x.flip(0)[:, 0, 0, 0]
    )
    expected = kept * torch.eye(4) + (1 - kept) * torch.eye(4).flip(0)
    torch.testing.assert_close(one.targets(torch.eye(4), 6, 6), expected.float())


def test_cutmix_keeps_as_much_of_a_target_as_of_its_image():
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 9, 15).contiguous()
    cut = 0
    for seed in range(20):
        one = augmented(Augmentation(cutmix=1.0), 4, seed=seed)
        found, targets = one.inputs(x), one.targets(torch.eye(4), 9, 15)
        for i in range(4):
            kept = float((found[i] == i).float().mean())
            assert targets[i, i] == pytest.approx(kept)
            assert targets[i, 3 - i] == pytest.approx(1 - kept)
        cut += bool(0 < float((found[0] == 3).float().mean()) < 1)
    assert cut > 15
    both = [augmented(Augmentation(mixup=1.0, cutmix=1.0), 4, seed=seed) for seed in range(40)]
    whole = sum(len(one.inputs(x)[0].unique()) == 1 for one in both)
    assert 8 < whole < 32  # about half are mixed as a whole


def test_what_is_wanted_of_a_step_is_smoothed_and_mixed():
    digits = load_digits((), seed=0, max_size=64)
    data = Batches(digits, digits.train, torch.device("cpu"))
    recipe = Recipe(epochs=1, batch_size=8, label_smoothing=0.1, mixup=1.0)
    images = StepImages(data, np.arange(8), recipe, 5, 0.5, 0, 0.1)
    x = images.at(12)
    wanted = images.wanted(x, 10)
    torch.testing.assert_close(wanted.sum(1), torch.ones(8))
    assert float(wanted.min()) == pytest.approx(0.01)
    plain = StepImages(
        data, np.arange(8), recipe.model_copy(update={"mixup": 0.0}), 5, 0.5, 0, 0.1
    )
    assert torch.equal(plain.wanted(x, 10).argmax(1), images.labels)
    assert not torch.equal(plain.at(12), x)
    assert torch.equal(images.at(12), x)  # drawn again


@pytest.mark.long
def test_a_training_by_all_of_it_learns():
    from deploynas import spaces
    from deploynas.nn import build
    from deploynas.train import accuracy

    digits = load_digits((), seed=0, max_size=64)
    space = spaces.space("mobile-small", 10, 1, [20])
    torch.manual_seed(0)
    network = build(space, space.smallest()[0])
    recipe = Recipe(
        epochs=12, batch_size=64, optimizer="adamw", learning_rate=4e-3, weight_decay=0.05,
        clip=2.0, ema=0.9, augment_from=0, flip=False, operations=2, erased=0.1, mixup=0.2,
        cutmix=1.0, layer_decay=0.98,
    )  # fmt: skip
    train_network(network, digits, recipe)
    assert accuracy(network, Batches(digits, digits.test, torch.device("cpu")), 20) > 0.7
