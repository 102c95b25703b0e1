"""Which class of the data is which output of a model, and how images are prepared for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from deploynas.check.accuracy import Examples, ImageInput, Recipe, file_accuracy, prepared
from deploynas.data import load_dataset
from deploynas.errors import InvalidInputError

LEVELS = 12


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Grey images of the level 20 k in the folders ``0`` to ``11``."""
    root = tmp_path_factory.mktemp("numbered")
    for k in range(LEVELS):
        (root / str(k)).mkdir()
        for i in range(4):
            Image.new("L", (8, 8), 20 * k).save(root / str(k) / f"{i}.png")
    return load_dataset(root)


def reader(
    path, order=range(LEVELS), shape=(1, 1, 8, 8), kind=TensorProto.FLOAT, mean=0.0, std=1.0
):
    """A model whose output ``order[k]`` is largest for the level 20 k, where so normalised."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["m"], keepdims=0),
        helper.make_node("Sub", ["centres", "m"], ["d"]),
        helper.make_node("Abs", ["d"], ["e"]),
        helper.make_node("Neg", ["e"], ["y"]),
    ]
    centres = np.zeros(len(order), np.float32)
    centres[list(order)] = (20 * np.arange(len(order)) / 255 - mean) / std
    if kind == TensorProto.UINT8:
        centres = centres * 255
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(order)])],
        [numpy_helper.from_array(centres, "centres")],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def accuracy_of(path, data, *recipe):
    examples = Examples.of(data, None, Recipe(*recipe))
    return file_accuracy(path, examples, lambda text, share: None)


def test_numbered_classes_are_the_outputs_of_their_numbers(numbered, tmp_path):
    plain = (None, (0.0,), (1.0,))
    assert accuracy_of(reader(tmp_path / "m.onnx"), numbered, *plain) == 1
    shuffled = np.random.default_rng(0).permutation(LEVELS)
    path = reader(tmp_path / "s.onnx", shuffled)
    listed = tuple(str(k) for k in np.argsort(shuffled))
    assert accuracy_of(path, numbered, *plain) < 1
    assert accuracy_of(path, numbered, listed, (0.0,), (1.0,)) == 1


def test_normalisation_is_what_was_asked_and_is_told(numbered, tmp_path):
    path = reader(tmp_path / "m.onnx", mean=0.4, std=0.2)
    assert accuracy_of(path, numbered, None, (0.4,), (0.2,)) == 1
    assert accuracy_of(path, numbered) < 1
    asked = Examples.of(numbered, None, Recipe(None, (0.4,), (0.2,), 0.5))
    assert asked.told == (
        "mean 0.4 and standard deviation 0.2 as asked; the centre 50.0% kept; 12 classes in the "
        "order 0, 1, 2, ..."
    )
    assert "of the data's own" in Examples.of(numbered, None).told


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1, 8, 8, 1), TensorProto.FLOAT), ((1, 1, 8, 8), TensorProto.FLOAT16),
     ((1, 8, 8, 1), TensorProto.UINT8), ((1, 1, 8, 8), TensorProto.UINT8)],
)  # fmt: skip
def test_layouts_and_types(shape, kind, numbered, tmp_path):
    path = reader(tmp_path / "m.onnx", shape=shape, kind=kind)
    assert accuracy_of(path, numbered, None, (0.0,), (1.0,)) == 1


def test_the_centre_is_cut_after_the_resize(numbered):
    """224 of 256 px, and not 0.875 of a frame: what torchvision's recipe does."""
    frame = np.zeros((1, 16, 16, 1), np.uint8)
    frame[:, 4:12, 4:12] = 255
    split = type(numbered.test)(frame, np.zeros(1, np.int64))
    examples = Examples(split, (0.0,), (1.0,), 2, cut=0.5)
    image = ImageInput("x", "float32", 8, 8, 1, False)
    assert (prepared(image, examples, np.arange(1)) == 1).all()


def test_classes_are_compared_by_name(numbered):
    renamed = replace(numbered, classes=(*numbered.classes[:-1], "twelve"))
    with pytest.raises(InvalidInputError, match="does not know twelve"):
        Examples.of(renamed, None, Recipe(numbered.classes))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"mean": "a"}, "--mean is a fraction"),
        ({"mean": "1,2"}, "--mean is a fraction"),
        ({"mean": "123.7,116.3,103.5"}, "--mean is a fraction"),
        ({"std": "0"}, "--std must be a positive"),
        ({"std": "nan"}, "--std is a fraction"),
        ({"crop": 1.5}, "--crop is a share"),
    ],
)
def test_recipes_that_are_none(typed, said):
    with pytest.raises(InvalidInputError, match=said):
        Recipe.parse(typed.get("classes"), typed.get("mean"), typed.get("std"), typed.get("crop"))


def test_a_list_of_classes_that_is_none(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("a\nb\na\n")
    with pytest.raises(InvalidInputError, match="names the class 'a' twice"):
        Recipe.parse(path, None, None, None)
    path.write_text("a\nb\n\n")
    assert Recipe.parse(path, None, None, None).classes == ("a", "b")
