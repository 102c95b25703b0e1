"""The data package, on real image and IDX files written to a temporary directory."""

from __future__ import annotations

import builtins
import gzip
import os
import re
import struct
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploynas.data import (
    ImageDataset,
    Split,
    build_dataset,
    decode,
    load_dataset,
    native_size_for,
    normalise,
    resize,
    resolutions_for,
    sources,
    space_for,
)
from deploynas.data.idx import FASHION_CLASSES, FILE_NAMES
from deploynas.data.sources import load_digits
from deploynas.data.splits import stratified_mask
from deploynas.errors import (
    InvalidInputError,
    MissingDependencyError,
    MissingFileError,
)
from deploynas.spaces import Resolution


def colours(rng, side=16, channels=3):
    shape = (side, side) if channels == 1 else (side, side, channels)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def write_class(folder: Path, count: int, *, seed: int, side: int = 16, channels: int = 3):
    """Write ``count`` distinct PNG files."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(colours(rng, side, channels)).save(folder / f"{index:04}.png")


def write_classes(root: Path, counts: dict[str, int], **kwargs) -> Path:
    base = kwargs.pop("seed", 0)
    for number, (name, count) in enumerate(counts.items()):
        write_class(root / name, count, seed=base + number, **kwargs)
    return root


def write_parts(root: Path, parts: dict[str, dict[str, int]], **kwargs) -> Path:
    for number, (part, counts) in enumerate(parts.items()):
        write_classes(root / part, counts, seed=100 * number, **kwargs)
    return root


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(root, *, classes=10, train=200, test=50, side=12, plain=False):
    rng = np.random.default_rng(3)
    root.mkdir(parents=True, exist_ok=True)
    arrays = []
    for count in (train, test):
        arrays += [rng.integers(0, 256, (count, side, side)), np.arange(count) % classes]
    for name, array in zip(FILE_NAMES, arrays, strict=True):
        if plain:
            (root / name).write_bytes(idx_bytes(array))
        else:
            (root / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array), 1))
    return root


def splits(data: ImageDataset) -> tuple[Split, Split, Split]:
    return data.train, data.val, data.test


def image_keys(split: Split) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def assert_refused(path, *fragments, error=InvalidInputError, **kwargs):
    with pytest.raises(error) as caught:
        load_dataset(path, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert str(fragment) in message


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No Fashion-MNIST on this machine; returns where a download would go."""
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("DEPLOYNAS_FASHION_MNIST", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "deploynas" / "fashion-mnist" / "FashionMNIST" / "raw"


@pytest.fixture
def folder(tmp_path):
    return write_classes(tmp_path / "pets", {"cat": 40, "dog": 20, "emu": 10})


# --- preprocessing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (28, (20, 24, 28)),
        (32, (24, 28, 32)),
        (64, (48, 56, 64)),
        (12, (8, 12)),
        (8, (8,)),
    ],
)
def test_resolutions(size, expected):
    assert resolutions_for(size) == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_pillows_bilinear(channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, channels), dtype=np.uint8)
    result = resize(images, 20)
    assert result.shape == (3, 20, 20, channels)
    assert result.dtype == np.uint8
    for source, ours in zip(images, result, strict=True):
        image = Image.fromarray(source.squeeze())
        theirs = np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR))
        assert np.array_equal(ours.squeeze(), theirs)


def test_resize_distorts_nothing():
    rng = np.random.default_rng(0)
    for height, width, rows, columns in [(36, 60, 24, 40), (48, 48, 24, 40), (30, 90, 20, 20)]:
        images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        found = resize(images, rows, columns)
        assert np.array_equal(found, resize(images, f"{rows}x{columns}"))
        scale = max(rows / height, columns / width)
        whole = Image.fromarray(images[0]).resize(
            (round(width * scale), round(height * scale)), Image.Resampling.BILINEAR
        )
        top, left = (whole.height - rows) // 2, (whole.width - columns) // 2
        expected = np.asarray(whole)[top : top + rows, left : left + columns]
        # Pillow may swap its two passes for a box, which rounds differently.
        np.testing.assert_allclose(found[0].astype(int), expected.astype(int), atol=1)


def test_resize_antialiases():
    stripes = np.zeros((1, 32, 32, 1), dtype=np.uint8)
    stripes[:, :, ::2] = 255
    assert np.ptp(resize(stripes, 8)[0, :, 2:6].astype(int)) < 20


def test_resize_keeps_native_size_and_refuses_nonsense():
    images = np.zeros((2, 8, 8, 1), dtype=np.uint8)
    assert resize(images, 8) is images
    with pytest.raises(InvalidInputError, match="positive"):
        resize(images, 0)


def test_a_split_gives_rows_at_any_size():
    images = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    split = Split(images, np.arange(4))
    rows = np.array([3, 0, 3])
    assert len(split) == 4
    assert np.array_equal(split.batch(rows, 12, 12), resize(images, 12)[rows])
    assert np.array_equal(split.batch(rows, 16, 16), images[rows])
    assert split.batch(rows, 8, 12).shape == (3, 8, 12, 3)
    assert np.array_equal(split.first(2), images[:2])
    assert len(split.first(9)) == 4
    assert np.array_equal(split.take(rows).batch(np.arange(3), 12, 12), resize(images, 12)[rows])


def test_normalise():
    images = np.random.default_rng(2).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    result = normalise(images, mean, std)
    assert result.dtype == np.float32
    assert result.shape == (2, 3, 5, 4)
    assert result.flags["C_CONTIGUOUS"]
    expected = ((images / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    with pytest.raises(InvalidInputError, match="3 channels"):
        normalise(images, (0.5,), (0.5,))


# --- statistics and fingerprint ----------------------------------------------------------


def test_statistics_are_of_the_training_split(folder):
    data = load_dataset(folder)
    fractions = data.train.images / 255
    np.testing.assert_allclose(data.mean, fractions.mean(axis=(0, 1, 2)), atol=1e-9)
    np.testing.assert_allclose(data.std, fractions.std(axis=(0, 1, 2)), atol=1e-9)
    assert len(data.mean) == len(data.std) == data.channels == 3


def test_constant_images_do_not_divide_by_zero(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.new("L", (8, 8), 7).save(tmp_path / name / f"{index}.png")
    data = load_dataset(tmp_path)
    assert data.std == (1 / 255,)
    assert np.isfinite(normalise(data.train.images, data.mean, data.std)).all()


def test_fingerprint_follows_content_names_and_labels(folder):
    first = load_dataset(folder).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert load_dataset(folder).fingerprint == first
    (folder / "dog").rename(folder / "dot")
    renamed = load_dataset(folder).fingerprint
    assert renamed != first
    (folder / "dot").rename(folder / "dog")
    Image.new("RGB", (16, 16)).save(folder / "cat" / "0000.png")
    assert load_dataset(folder).fingerprint not in (first, renamed)


def test_fingerprint_covers_labels_of_every_split():
    images = np.zeros((2, 8, 8, 1), dtype=np.uint8)
    one, other = (Split(images, np.array(labels)) for labels in ([0, 1], [1, 0]))
    seen = {
        build_dataset(
            name="x", classes=("a", "b"), train=a, val=b, test=c, warnings=(), source="x"
        ).fingerprint
        for a in (one, other)
        for b in (one, other)
        for c in (one, other)
    }
    assert len(seen) == 8


# --- splits ------------------------------------------------------------------------------


def test_stratified_mask_is_exact_for_balanced_labels():
    labels = np.repeat(np.arange(10), 600)
    mask = stratified_mask(labels, 500, np.random.default_rng(0))
    assert np.bincount(labels[mask]).tolist() == [50] * 10


def test_stratified_mask_shares_remainders_and_spares_small_classes():
    labels = np.array([0] * 95 + [1] * 55 + [2] * 2)
    mask = stratified_mask(labels, 15, np.random.default_rng(0))
    assert np.bincount(labels[mask]).tolist() == [9, 6, 1]
    everything = stratified_mask(labels, len(labels), np.random.default_rng(0))
    assert np.bincount(labels[~everything]).tolist() == [1, 1, 1]


def test_one_level_is_split_80_10_10_stratified_and_disjoint(folder):
    data = load_dataset(folder)
    assert data.name == "pets"
    assert data.source == str(folder)
    assert data.classes == ("cat", "dog", "emu")
    assert data.num_classes == 3
    assert data.warnings == ()
    counts = [np.bincount(part.labels).tolist() for part in splits(data)]
    assert counts == [[32, 16, 8], [4, 2, 1], [4, 2, 1]]
    keys = [image_keys(part) for part in splits(data)]
    assert len(set.union(*keys)) == sum(len(part) for part in splits(data)) == 70
    assert all(part.labels.dtype == np.int64 for part in splits(data))
    assert all(part.images.dtype == np.uint8 for part in splits(data))


def test_pixels_and_labels_belong_together(folder):
    data = load_dataset(folder)
    by_pixels = {
        np.asarray(Image.open(path)).tobytes(): path.parent.name for path in folder.glob("*/*.png")
    }
    for part in splits(data):
        for image, label in zip(part.images, part.labels, strict=True):
            assert by_pixels[image.tobytes()] == data.classes[label]


def test_splits_depend_on_the_seed_alone(folder, tmp_path):
    first, again, other = (load_dataset(folder, seed=seed) for seed in (5, 5, 6))
    for ours, theirs in zip(splits(first), splits(again), strict=True):
        assert np.array_equal(ours.images, theirs.images)
        assert np.array_equal(ours.labels, theirs.labels)
    assert image_keys(first.test) != image_keys(other.test)
    # Files created in another order, in another place, are the same data set.
    for path in sorted(folder.glob("*/*.png"), reverse=True):
        copy = tmp_path / "copy" / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert load_dataset(tmp_path / "copy", seed=5).fingerprint == first.fingerprint


def test_three_images_a_class_are_enough_and_two_are_not(tmp_path):
    root = write_classes(tmp_path / "tiny", {"a": 3, "b": 3})
    counts = [np.bincount(part.labels).tolist() for part in splits(load_dataset(root))]
    assert counts == [[1, 1]] * 3
    (root / "b" / "0000.png").unlink()
    assert_refused(root, "'b'", "2 images", "3 or more")


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_one_given_part_is_the_test_split(tmp_path, held_out):
    counts = {"a": 40, "b": 20}
    root = write_parts(tmp_path / "parts", {"train": counts, held_out: {"a": 3, "b": 2}})
    data = load_dataset(root)
    assert [np.bincount(part.labels).tolist() for part in splits(data)] == [
        [36, 18],
        [4, 2],
        [3, 2],
    ]
    given = {np.asarray(Image.open(p)).tobytes() for p in root.glob(f"{held_out}/*/*")}
    assert image_keys(data.test) == given
    assert not image_keys(data.train) & image_keys(data.val)
    assert image_keys(load_dataset(root, seed=1).val) != image_keys(data.val)
    assert image_keys(load_dataset(root, seed=1).test) == given


def test_three_given_parts_are_used_as_they_stand(tmp_path):
    parts = {"train": {"a": 5, "b": 6}, "val": {"a": 2, "b": 1}, "test": {"a": 1, "b": 3}}
    data = load_dataset(write_parts(tmp_path / "parts", parts))
    for part, counts in zip(splits(data), parts.values(), strict=True):
        assert np.bincount(part.labels).tolist() == list(counts.values())
    assert data.warnings == ()


def test_folders_beside_the_parts_are_reported(tmp_path):
    parts = {name: {"a": 3, "b": 3} for name in ("train", "test", "more")}
    (warning,) = load_dataset(write_parts(tmp_path / "parts", parts)).warnings
    assert "more" in warning
    assert "ignored" in warning


# --- image files -------------------------------------------------------------------------


def test_hidden_and_foreign_files_are_ignored_and_suffixes_are_not_case_sensitive(tmp_path):
    root = write_classes(tmp_path / "mixed", {"a": 3, "b": 3})
    write_class(root / ".cache", 1, seed=9)
    (root / "README.txt").write_text("hello")
    (root / "a" / ".hidden.png").write_bytes(b"junk")
    (root / "a" / "notes.txt").write_text("hello")
    (root / "a" / "more.png").mkdir()
    image = Image.fromarray(colours(np.random.default_rng(50)))
    names = ["A.JPG", "b.jpeg", "c.Png", "d.bmp", "e.gif", "f.webp", "g.ppm", "h.TIF", "i.tiff"]
    for name in names:
        image.save(root / "b" / name)
    image.convert("L").save(root / "b" / "j.pgm")
    data = load_dataset(root)
    assert data.classes == ("a", "b")
    (warning,) = data.warnings
    assert warning.endswith("left out: 1 .txt")
    labels = np.concatenate([part.labels for part in splits(data)])
    assert np.bincount(labels).tolist() == [3, 3 + len(names) + 1]


def save_all(root: Path, images: list[Image.Image], suffix="png") -> Path:
    for number, image in enumerate(images):
        for name in "ab":
            path = root / name / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


def grey_image(mode: str) -> Image.Image:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if mode == "I;16":
        return Image.fromarray(values.astype(np.uint16) * 257)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "I", "F", "RGB", "RGBA", "P"])
def test_grey_images_become_one_channel(tmp_path, mode):
    image = grey_image(mode)
    data = load_dataset(save_all(tmp_path, [image] * 3, "tiff" if mode in "IF" else "png"))
    assert data.channels == 1
    assert data.train.images.shape == (2, 16, 16, 1)
    expected = np.asarray(grey_image("1").convert("L") if mode == "1" else grey_image("L"))
    assert np.array_equal(data.train.images[0, ..., 0], expected)


def test_float_fractions_are_scaled(tmp_path):
    fractions = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    data = load_dataset(save_all(tmp_path, [Image.fromarray(fractions)] * 3, "tiff"))
    assert np.array_equal(data.train.images[0].ravel(), np.arange(256))


def test_one_colour_image_makes_three_channels(tmp_path):
    root = save_all(tmp_path, [grey_image("L")] * 5)
    rng = np.random.default_rng(0)
    coloured = colours(rng)
    Image.fromarray(coloured).save(root / "b" / "9.png")
    data = load_dataset(root, seed=0)
    assert data.channels == 3
    grey = data.train.images[data.train.labels == 0][0]
    assert np.array_equal(grey, np.repeat(np.asarray(grey_image("L"))[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_colour_modes_become_rgb(tmp_path, mode):
    image = Image.new("RGB", (16, 16), (255, 0, 0)).convert(mode)
    data = load_dataset(save_all(tmp_path, [image] * 3, "tiff" if mode == "CMYK" else "png"))
    assert data.channels == 3
    assert data.train.images[0, 0, 0].tolist() == [255, 0, 0]


def test_sample_is_spread_over_classes(tmp_path):
    # 220 grey images sort before the colour: only a spread sample of 200 meets it.
    root = write_classes(tmp_path / "x", {"a": 220}, side=8, channels=1)
    write_class(root / "b", 5, seed=1, side=8)
    assert load_dataset(root).channels == 3


@pytest.mark.parametrize(
    ("sides", "max_size", "expected"),
    [
        ((32, 32, 32), 64, 32),
        ((30, 31, 90), 64, 32),  # the median 31
        ((29, 29, 29), 64, 28),
        ((5, 5, 5), 64, 8),
        ((200, 200, 200), 64, 64),
        ((200, 200, 200), 50, 48),
    ],
)
def test_native_size(tmp_path, sides, max_size, expected):
    images = [Image.new("RGB", (side, side + 9), (9, 8, 7)) for side in sides]
    data = load_dataset(save_all(tmp_path, images), max_size=max_size)
    assert data.size == expected
    assert data.train.images.shape[1:] == (expected, expected, 3)


def test_shortest_side_is_resized_and_the_centre_cropped(tmp_path):
    wide = np.zeros((16, 48), dtype=np.uint8)
    wide[:, 16:32] = 200  # the centre square
    exact = load_dataset(save_all(tmp_path / "exact", [Image.fromarray(wide)] * 3))
    assert exact.size == 16
    assert (exact.train.images == 200).all()
    rng = np.random.default_rng(0)
    tall = Image.fromarray(colours(rng, 64)).resize((64, 128), Image.Resampling.BICUBIC)
    data = load_dataset(save_all(tmp_path / "small", [tall] * 3), max_size=32)
    small = tall.resize((32, 64), Image.Resampling.BILINEAR).crop((0, 16, 32, 48))
    # Pillow may swap its two passes for a box, which rounds differently.
    np.testing.assert_allclose(data.train.images[0].astype(int), np.asarray(small), atol=1)


def test_wide_images_stay_wide_where_that_is_asked(tmp_path):
    wide = np.zeros((48, 100), dtype=np.uint8)
    wide[:, 10:90] = 200  # the centre of 24 to 40
    root = save_all(tmp_path / "wide", [Image.fromarray(wide)] * 3)
    found = load_dataset(root, max_size="24x40")
    assert (found.size, found.train.images.shape[1:]) == ("24x40", (24, 40, 1))
    assert (found.train.images[:, 3:-3, 3:-3] == 200).all()
    assert found.fingerprint == load_dataset(root, max_size=Resolution(24, 40)).fingerprint
    assert found.fingerprint != load_dataset(root).fingerprint
    with pytest.raises(InvalidInputError, match="8 or more"):
        load_dataset(root, max_size="4x40")


def test_digits_and_idx_files_can_be_wide_too():
    digits = load_digits((), seed=0, max_size="24x40")
    assert digits.val.images.shape[1:] == (24, 40, 1)
    assert space_for("mobile-small", digits).resolutions == (20, 24)
    assert space_for("mobile-small", digits, ["24x40"]).resolutions == ("24x40",)


@pytest.mark.parametrize(
    ("resolutions", "expected"),
    [
        ([20, 24], 64),
        ([128, 224], 224),
        (["24x40", "96x160"], "96x160"),
        (["24x41", "96x160"], "96x160"),
    ],
)
def test_images_are_loaded_as_large_as_networks_see_them(resolutions, expected):
    assert native_size_for(resolutions) == expected


def test_no_one_size_is_right_for_several_shapes():
    with pytest.raises(InvalidInputError, match="of several shapes, 24x40 and 64"):
        native_size_for(["24x40", 64])


def test_linked_folders_are_read_and_text_is_no_image(tmp_path):
    root = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    elsewhere = write_classes(tmp_path / "more", {"c": 3}) / "c"
    (root / "a" / "more").symlink_to(elsewhere, target_is_directory=True)
    (root / "a" / "round").symlink_to(root / "a", target_is_directory=True)
    (root / "b" / "cars.txt").write_text("BMW 3 series\n")
    (root / "b" / "table.csv").write_text("P1,P2\n1,2\n")
    found = load_dataset(root)
    assert sum(len(split) for split in (found.train, found.val, found.test)) == 11
    assert any(".csv" in text and ".txt" in text for text in found.warnings)


def test_extreme_aspect_ratio_stays_cheap(tmp_path):
    data = load_dataset(save_all(tmp_path, [Image.new("RGB", (1, 5000), (1, 2, 3))] * 3))
    assert data.size == 8
    assert (data.train.images == [1, 2, 3]).all()


def test_threads_read_big_images_as_one_thread_does(tmp_path):
    root = write_classes(tmp_path / "big", {"a": 8, "b": 8}, side=100)
    paths = sorted(root.glob("*/*.png"))
    look = decode.look_at(paths, 64)
    assert look.threads == (os.cpu_count() or 1)
    decoded = decode.decode(paths, look)
    assert not decoded.faults
    expected = [Image.open(p).resize((64, 64), Image.Resampling.BILINEAR) for p in paths]
    assert np.array_equal(decoded.pixels, np.stack([np.asarray(image) for image in expected]))


def test_progress_counts_up_to_the_total(tmp_path):
    root = write_classes(tmp_path / "x", {"a": 150, "b": 150}, side=8)
    calls: list[tuple[int, int]] = []
    load_dataset(root, progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(set(calls))
    assert len(calls) > 1
    assert calls[-1] == (300, 300)
    assert {total for _, total in calls} == {300}


def test_error_in_progress_ends_the_load(folder):
    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_dataset(folder, progress=cancel)


# --- corrupt images ----------------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    return write_classes(tmp_path / "many", {"a": 250, "b": 250}, side=8)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif how == "text":
        path.write_text("not an image")
    elif how == "foreign":
        Image.new("RGB", (8, 8)).save(path, format="PCX")
    elif how == "dangling":
        path.unlink()
        path.symlink_to("nowhere.png")


REASONS = {
    "empty": "empty", "truncated": "cut off", "text": "not an image", "foreign": "not an image",
    "dangling": "a link to nothing",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", REASONS)
def test_corrupt_image_is_skipped_and_named(many, how):
    damage(many / "b" / "0007.png", how)
    data = load_dataset(many)
    assert sum(len(part) for part in splits(data)) == 499
    expected = f"1 of 500 images could not be read and was skipped: {Path('b', '0007.png')}"
    assert data.warnings == (f"{expected} ({REASONS[how]})",)
    whole = set.union(*(image_keys(part) for part in splits(data)))
    assert bytes(8 * 8 * 3) not in whole


def test_decompression_bomb_is_corrupt(many, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (50, 50)).save(many / "a" / "0003.png")
    (warning,) = load_dataset(many).warnings
    assert "0003.png" in warning


def test_warning_names_the_first_few(many):
    for index in range(5):
        damage(many / "a" / f"{index:04}.png", "text")
    (warning,) = load_dataset(many).warnings
    assert warning.startswith("5 of 500 images could not be read and were skipped: ")
    names = (f"{Path('a', f'{i:04}.png')} (not an image)" for i in range(3))
    assert warning.endswith(f"{', '.join(names)}, ...")


def test_more_than_one_percent_corrupt_is_refused(many):
    for index in range(6):
        damage(many / "a" / f"{index:04}.png", "truncated")
    assert_refused(many, "6 of 500 images", Path("a", "0000.png"))


def test_nothing_readable_is_refused(tmp_path):
    root = write_classes(tmp_path / "bad", {"a": 3, "b": 3})
    for path in root.glob("*/*.png"):
        damage(path, "text")
    assert_refused(root, "none of 2 sampled images", ".png")


def test_class_lost_to_corruption_is_refused(tmp_path):
    root = write_classes(tmp_path / "x", {"a": 400, "b": 3}, side=8)
    damage(root / "b" / "0001.png", "text")
    assert_refused(root, "'b'", "can be read")


# --- refused folders ---------------------------------------------------------------------


def test_missing_path(tmp_path):
    assert_refused(tmp_path / "none", "none does not exist", error=MissingFileError)


def test_path_is_a_file(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK")
    assert_refused(tmp_path / "data.zip", "data.zip", "not a directory")


def test_empty_directory(tmp_path):
    assert_refused(tmp_path, "neither class folders nor IDX files", "<class>/*.jpg")


def test_images_without_class_folders(tmp_path):
    write_class(tmp_path / "flat", 4, seed=0)
    assert_refused(tmp_path / "flat", "neither class folders")


def test_single_class(tmp_path):
    assert_refused(write_classes(tmp_path / "x", {"only": 5}), "'only'", "two or more")


def test_empty_class_folder(folder):
    (folder / "fox").mkdir()
    (folder / "fox" / "notes.txt").write_text("soon")
    assert_refused(folder, folder / "fox", "no images")


def test_empty_class_folder_in_test(tmp_path):
    root = write_parts(tmp_path / "x", {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 0}})
    assert_refused(root, Path("test", "b"), "no images")


def test_train_alone(tmp_path):
    root = write_parts(tmp_path / "x", {"train": {"a": 3, "b": 3}})
    assert_refused(root, "neither val/ nor test/", root / "train")
    assert len(load_dataset(root / "train").train) == 2


def test_parts_without_train(tmp_path):
    root = write_parts(tmp_path / "x", {"val": {"a": 3, "b": 3}, "test": {"a": 3, "b": 3}})
    assert_refused(root, "val/", "no train/")


def test_train_without_class_folders(tmp_path):
    root = write_parts(tmp_path / "x", {"test": {"a": 3, "b": 3}})
    write_class(root / "train", 3, seed=0)
    assert_refused(root, "train", "no classes")


def test_class_missing_in_test(tmp_path):
    root = write_parts(tmp_path / "x", {"train": {"a": 3, "b": 3}, "test": {"a": 3}})
    assert_refused(root, root / "test", "lacks the class 'b'")


def test_class_unknown_in_val(tmp_path):
    both = {"a": 3, "b": 3}
    root = write_parts(tmp_path / "x", {"train": both, "val": {**both, "c": 1}, "test": both})
    assert_refused(root, root / "val", "the class 'c'")


def test_one_training_image(tmp_path):
    root = write_parts(tmp_path / "x", {"train": {"a": 3, "b": 1}, "test": {"a": 1, "b": 1}})
    assert_refused(root, "'b'", "1 image,", "2 or more")


def test_unprintable_class_name(folder):
    write_class(folder / "new\nline", 3, seed=9)
    assert_refused(folder, "unprintable")


def test_unreadable_folder(folder, monkeypatch):
    real = os.scandir

    def scandir(path):
        if Path(path).name == "cat":  # permissions would not stop a privileged user
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert_refused(folder, folder / "cat", "cannot read", "Permission denied")


@pytest.mark.parametrize("keywords", [{"seed": -1}, {"max_size": 7}])
def test_bad_arguments(folder, keywords):
    assert_refused(folder, str(next(iter(keywords.values()))), **keywords)


# --- IDX files ---------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
def test_idx_directory(tmp_path, plain):
    root = write_idx(tmp_path / "digits-idx", plain=plain)
    data = load_dataset(root)
    assert data.classes == tuple("0123456789")
    assert (data.channels, data.size, data.name) == (1, 12, "digits-idx")
    assert data.source == str(root)
    assert [len(part) for part in splits(data)] == [180, 20, 50]
    assert np.bincount(data.val.labels).tolist() == [2] * 10
    assert not image_keys(data.train) & image_keys(data.val)
    assert load_dataset(root).fingerprint == data.fingerprint
    assert load_dataset(root, seed=1).fingerprint != data.fingerprint
    images = np.random.default_rng(3).integers(0, 256, (200, 12, 12)).astype(np.uint8)
    assert image_keys(data.train) | image_keys(data.val) == {i.tobytes() for i in images}


def test_gzipped_and_plain_files_are_the_same_data(tmp_path):
    first = load_dataset(write_idx(tmp_path / "a"))
    assert load_dataset(write_idx(tmp_path / "b", plain=True)).fingerprint == first.fingerprint


@pytest.mark.parametrize("place", ["my-Fashion", "FashionMNIST/raw"])
def test_fashion_names_follow_the_directory(tmp_path, place):
    assert load_dataset(write_idx(tmp_path / place)).classes == FASHION_CLASSES


def test_fashion_names_need_ten_classes(tmp_path):
    assert load_dataset(write_idx(tmp_path / "fashion", classes=4)).classes == tuple("0123")


def test_idx_labels_need_not_start_at_zero(tmp_path):
    root = write_idx(tmp_path / "letters", classes=5)
    for name, count in ((FILE_NAMES[1], 200), (FILE_NAMES[3], 50)):
        (root / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(np.arange(count) % 5 + 1)))
    data = load_dataset(root)
    assert data.classes == tuple("12345")
    assert set(data.train.labels.tolist()) == set(range(5))


def test_idx_images_are_brought_to_a_usable_side(tmp_path):
    data = load_dataset(write_idx(tmp_path / "odd", side=30), max_size=24)
    assert data.size == 24
    assert data.test.images.shape == (50, 24, 24, 1)


def test_idx_file_missing(tmp_path):
    root = write_idx(tmp_path / "x")
    (root / "t10k-labels-idx1-ubyte.gz").unlink()
    assert_refused(root, "t10k-labels-idx1-ubyte", error=MissingFileError)


@pytest.mark.parametrize("name", FILE_NAMES)
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("keep", [-1, 30, 6, 0])
def test_truncated_idx_file(tmp_path, name, plain, keep):
    root = write_idx(tmp_path / "x", plain=plain)
    path = root / (name if plain else f"{name}.gz")
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(root, path)


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        gzip.compress(b"hello"),
        gzip.compress(idx_bytes(np.zeros((2, 2)))),
        gzip.compress(idx_bytes(np.zeros((0, 4, 4)))),
        gzip.compress(idx_bytes(np.zeros((200, 12, 12))) + b"more"),
        gzip.compress(bytes((0, 0, 8, 3)) + b"\xff" * 12),
        gzip.compress(idx_bytes(np.zeros((200, 12, 12))))[:-9] + b"\x00" * 9,
    ],
)
def test_garbled_idx_file(tmp_path, content):
    root = write_idx(tmp_path / "x")
    path = root / f"{FILE_NAMES[0]}.gz"
    path.write_bytes(content)
    assert_refused(root, path)


def test_label_count_mismatch(tmp_path):
    root = write_idx(tmp_path / "x")
    path = root / f"{FILE_NAMES[1]}.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.arange(199) % 10)))
    assert_refused(root, path, "199 labels", "200 images")


@pytest.mark.parametrize(
    ("number", "labels", "fragment"),
    [
        (1, np.zeros(200), "only the class '0'"),
        (1, np.array([*range(9)] * 22 + [0, 9]), "'9'"),
        (3, np.array([0] * 49 + [11]), "label 11"),
        (3, np.zeros(50), "'1'"),
    ],
)
def test_idx_labels_that_cannot_be_used(tmp_path, number, labels, fragment):
    root = write_idx(tmp_path / "x")
    (root / f"{FILE_NAMES[number]}.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    assert_refused(root, fragment)


# --- the default data set ----------------------------------------------------------------


def test_debians_fashion_mnist(monkeypatch):
    if not all((sources.FASHION_MNIST_DIRECTORY / f"{name}.gz").is_file() for name in FILE_NAMES):
        pytest.skip("Fashion-MNIST is not installed (apt install dataset-fashion-mnist)")
    monkeypatch.delenv("DEPLOYNAS_FASHION_MNIST", raising=False)
    data = load_dataset(None)
    assert (data.name, data.source, data.warnings) == ("fashion-mnist", "fashion-mnist", ())
    assert data.classes == FASHION_CLASSES
    assert (data.channels, data.size) == (1, 28)
    assert [len(part) for part in splits(data)] == [55_000, 5_000, 10_000]
    assert np.bincount(data.val.labels).tolist() == [500] * 10
    assert data.mean == pytest.approx((0.286,), abs=1e-3)
    assert data.std == pytest.approx((0.353,), abs=1e-3)


def test_environment_variable_names_the_directory(tmp_path, nowhere, monkeypatch):
    monkeypatch.setenv("DEPLOYNAS_FASHION_MNIST", str(write_idx(tmp_path / "files")))
    data = load_dataset(None)
    assert data.source == "fashion-mnist"
    assert data.classes == FASHION_CLASSES


def test_garbled_default_files_are_refused(tmp_path, nowhere, monkeypatch):
    root = write_idx(tmp_path / "files")
    (root / f"{FILE_NAMES[2]}.gz").write_bytes(b"")
    monkeypatch.setenv("DEPLOYNAS_FASHION_MNIST", str(root))
    assert_refused(None, FILE_NAMES[2])


def test_earlier_download_is_found(nowhere):
    write_idx(nowhere)
    assert load_dataset(None).source == "fashion-mnist"


def test_digits_stand_in(nowhere):
    data = load_dataset(None)
    (warning,) = data.warnings
    for fragment in ("1,797 digits", "not Fashion-MNIST", "apt install", "--download"):
        assert fragment in warning
    assert (data.name, data.source) == ("digits", "digits")
    assert data.classes == tuple("0123456789")
    assert (data.channels, data.size) == (1, 28)
    assert [len(part) for part in splits(data)] == [1294, 144, 359]
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    per_class = Counter(data.test.labels.tolist())
    assert max(per_class.values()) - min(per_class.values()) <= 2
    assert load_dataset(None).fingerprint == data.fingerprint
    assert load_dataset(None, seed=1).fingerprint != data.fingerprint


def fake_torchvision(monkeypatch, download):
    module = types.ModuleType("torchvision.datasets")
    module.FashionMNIST = download
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


def test_download_goes_to_the_cache_and_not_to_standard_output(nowhere, monkeypatch, capsys):
    def download(*, root, train, download):
        print("downloading")
        assert download
        write_idx(Path(root) / "FashionMNIST" / "raw")

    fake_torchvision(monkeypatch, download)
    data = load_dataset(None, download=True)
    assert data.source == "fashion-mnist"
    assert data.warnings == ()
    assert nowhere.is_dir()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError("no mirror"), None])
def test_failed_download_falls_through_to_the_digits(nowhere, monkeypatch, error):
    def download(**_):
        if error is not None:
            raise error

    fake_torchvision(monkeypatch, download)
    data = load_dataset(None, download=True)
    assert data.source == "digits"
    assert "download of Fashion-MNIST failed" in data.warnings[0]
    assert "1,797" in data.warnings[1]
    assert all("\n" not in warning for warning in data.warnings)


@pytest.mark.parametrize(
    ("package", "download", "named"),
    [("sklearn", False, "scikit-learn"), ("torchvision", True, "torchvision")],
)
def test_missing_package_names_the_extra(nowhere, monkeypatch, package, download, named):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.datasets", None)
    assert_refused(
        None,
        named,
        "pip install 'deploynas[search]'",
        error=MissingDependencyError,
        download=download,
    )


def test_loading_needs_neither_torch_nor_scikit_learn(folder, monkeypatch):
    real = builtins.__import__

    def guarded(name, *args, **kwargs):
        assert name.partition(".")[0] not in ("torch", "torchvision", "sklearn")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    for name in [name for name in sys.modules if name.startswith("deploynas.data")]:
        monkeypatch.delitem(sys.modules, name)
    import deploynas.data as fresh

    assert fresh.load_dataset(folder).num_classes == 3
