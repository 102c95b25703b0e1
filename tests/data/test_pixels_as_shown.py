"""Image files as people have them: what a viewer shows is what a network gets."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image, features

from deploynas.data import load_dataset
from deploynas.errors import InvalidInputError


def save(folder, name, image, **options):
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **options)


def noise(rng):
    return Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))


def fill(root, count=4):
    """Noise for the classes ``a`` and ``b``."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for i in range(count):
            save(root / name, f"{i}.png", noise(rng))
    return root


def every_image(data):
    return np.concatenate([split.images for split in (data.train, data.val, data.test)])


def test_the_exif_orientation_is_applied(tmp_path):
    upper = np.zeros((16, 16), np.uint8)
    upper[:8] = 255
    for turn, stored in (
        (1, upper),
        (3, upper[::-1]),
        (6, np.rot90(upper)),
        (8, np.rot90(upper, -1)),
    ):
        exif = Image.Exif()
        exif[0x0112] = turn
        for name in ("a", "b"):
            save(tmp_path / name, f"{turn}.png", Image.fromarray(stored.copy()), exif=exif)
    images = every_image(load_dataset(tmp_path))[..., 0]
    assert (images == upper).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_black(mode, tmp_path):
    """Whatever colour hides there."""
    for name in ("a", "b"):
        for i, hidden in enumerate((0, 90, 255)):
            levels = np.full((16, 16), hidden, np.uint8)
            levels[4:12, 4:12] = 200
            image = Image.fromarray(levels)
            if mode in ("RGBA", "LA"):
                image = image.convert(mode)
                image.putalpha(Image.fromarray((levels == 200).astype(np.uint8) * 255))
                save(tmp_path / name, f"{i}.png", image)
            elif mode == "P":
                image = image.convert("P")
                save(tmp_path / name, f"{i}.png", image, transparency=hidden)
            else:
                save(tmp_path / name, f"{i}.png", image.convert("RGB"), transparency=(hidden,) * 3)
    images = every_image(load_dataset(tmp_path))
    assert (images[:, 4:12, 4:12] == 200).all()
    assert images.sum() == 200 * 64 * len(images) * images.shape[-1]


def deep(value):
    return Image.fromarray(np.full((16, 16), value, np.uint16))


def test_twelve_bits_in_files_of_sixteen(tmp_path):
    for name, value in (("a", 4095), ("b", 2048)):
        for i in range(4):
            save(tmp_path / name, f"{i}.png", deep(value))
    data = load_dataset(tmp_path)
    assert set(np.unique(every_image(data)).tolist()) == {128, 255}
    assert "values up to 4,095: 4,095 is white" in data.warnings[0]


def test_depths_may_be_mixed(tmp_path):
    for name in ("a", "b"):
        for i in range(3):
            save(tmp_path / name, f"{i}.png", deep(4095))
            save(tmp_path / name, f"{i}x.png", Image.new("L", (16, 16), 100))
    assert set(np.unique(every_image(load_dataset(tmp_path))).tolist()) == {100, 255}


def test_a_dark_sample_does_not_decide(tmp_path):
    """Only 200 files are looked at first; the brightest is not among them."""
    for name in ("a", "b"):
        for i in range(120):
            save(tmp_path / name, f"{i:03}.png", deep(65535 if i == 119 else 257))
    data = load_dataset(tmp_path)
    assert set(np.unique(every_image(data)).tolist()) == {1, 255}


def test_colours_of_sixteen_bits_are_told(tmp_path):
    """Pillow keeps eight of them."""
    import struct
    import zlib

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )  # fmt: skip

    row = b"\0" + b"\x80\x00\x40\x00\x20\x00" * 8
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.png").write_bytes(content)
    data = load_dataset(tmp_path)
    assert every_image(data)[0, 0, 0].tolist() == [0x80, 0x40, 0x20]
    assert data.warnings == ("6 colour images have 16 bits: the upper 8 are used",)


def test_images_are_found_by_content(tmp_path):
    fill(tmp_path)
    rng = np.random.default_rng(1)
    save(tmp_path / "a", "x.jfif", noise(rng), format="JPEG")
    save(tmp_path / "a", "x.heic", noise(rng), format="JPEG")
    save(tmp_path / "a", "none", noise(rng), format="PNG")
    count = 11
    if features.check("avif"):
        save(tmp_path / "b", "x.avif", noise(rng))
        count += 1
    (tmp_path / "b" / "real.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "b" / "a.txt").write_text("about")
    (tmp_path / "b" / "b.txt").write_text("about")
    data = load_dataset(tmp_path)
    assert len(every_image(data)) == count
    (warning,) = data.warnings
    assert "left out: 1 .heic, 2 .txt" in warning


def test_numbers_are_ordered_as_numbers(tmp_path):
    for i in range(12):
        for k in range(3):
            save(tmp_path / str(i), f"{k}.png", Image.new("L", (16, 16), i))
    data = load_dataset(tmp_path)
    assert data.classes == tuple(map(str, range(12)))
    assert (data.train.images[:, 0, 0, 0] == data.train.labels).all()


@pytest.mark.parametrize(
    ("train", "other"),
    [("train", "valid"), ("train", "validation"), ("train", "dev"), ("Train", "Test"),
     ("training", "testing"), ("TRAIN", "val")],
)  # fmt: skip
def test_other_names_of_the_splits(train, other, tmp_path):
    fill(tmp_path / train)
    fill(tmp_path / other, 3)
    fill(tmp_path / "__MACOSX")
    data = load_dataset(tmp_path)
    assert (data.classes, len(data.test), data.warnings) == (("a", "b"), 6, ())


def test_two_names_of_one_split(tmp_path):
    for name in ("train", "val", "valid"):
        fill(tmp_path / name)
    with pytest.raises(InvalidInputError, match="both val/ and valid/"):
        load_dataset(tmp_path)


def test_one_folder_too_deep(tmp_path):
    inside = load_dataset(fill(tmp_path / "flat"))
    archive = load_dataset(fill(tmp_path / "unpacked" / "archive").parent)
    for name in ("a", "b"):
        (tmp_path / "below" / name).mkdir(parents=True)
        (tmp_path / "flat" / name).rename(tmp_path / "below" / name / "images")
    below = load_dataset(tmp_path / "below")
    assert inside.fingerprint == archive.fingerprint == below.fingerprint


def test_every_broken_image_is_named_with_its_reason(tmp_path):
    fill(tmp_path, 6)
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "0.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "1.png").write_bytes(b"")
    (tmp_path / "a" / "2.png").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    (tmp_path / "a" / "3.png").write_text("<!DOCTYPE html><html>no</html>")
    (tmp_path / "b" / "4.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(InvalidInputError, match="5 of 13 images") as caught:
        load_dataset(tmp_path)
    reasons = (
        "cut off",
        "empty",
        "a Git LFS pointer",
        "a web page",
        "a HEIC file, not decoded here",
    )
    names = ("a/0.png", "a/1.png", "a/2.png", "a/3.png", "b/4.jpg")
    assert caught.value.details == tuple(
        f"{name} ({why})" for name, why in zip(names, reasons, strict=True)
    )


def test_names_that_are_no_utf8(tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    fill(root)
    with pytest.raises(InvalidInputError, match=r"caf\\xe9 is not UTF-8"):
        load_dataset(root)
    fill(tmp_path / "fine", 60)
    (tmp_path / "fine" / "a" / os.fsdecode(b"\xff.png")).write_bytes(b"broken")
    (warning,) = load_dataset(tmp_path / "fine").warnings
    assert r"a/\xff.png (not an image)" in warning
