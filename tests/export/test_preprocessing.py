"""Models that take pixels: what torchvision and PyTorch make of the same images."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torchvision import transforms

import deploynas as dn
from deploynas.check.verdict import Examples, file_accuracy
from deploynas.data import framed, normalise, resize
from deploynas.data.sources import load_digits
from deploynas.errors import InvalidInputError
from deploynas.export.exporter import network_bytes
from deploynas.graph.preprocess import centre, with_preprocessing
from deploynas.nn import build
from deploynas.nn.static import initialise
from deploynas.spaces import Resolution
from deploynas.train import Recipe, train_network

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 32


@pytest.fixture(scope="module")
def network():
    space = dn.space("mobile-small", 10, 3, [SIDE])
    torch.manual_seed(0)
    network = build(space, space.smallest()[0])
    initialise(network)
    return network.eval()


def pictures(height, width, num=8):
    """Smooth colours with some noise, as photographs have them."""
    rng = np.random.default_rng(0)
    for _ in range(num):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, 6, smooth.shape)
        yield np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def ask(content, image):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image[None]})[0][0]


@torch.no_grad()
def by_torchvision(network, image, crop=1.0):
    steps = [
        transforms.CenterCrop(centre(*image.shape[:2], crop).size),
        transforms.Resize(SIDE),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    x = transforms.Compose(steps)(Image.fromarray(image))
    return network(x[None]).softmax(1)[0].numpy()


def test_pixels_of_the_right_size_give_the_same_probabilities(network):
    content = with_preprocessing(network_bytes(network), MEAN, STD)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    for image in pictures(SIDE, SIDE):
        found, expected = ask(content, image), by_torchvision(network, image)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert found.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("size", "crop"), [((48, 64), 1.0), ((100, 75), 1.0), ((64, 64), 0.875), ((24, 24), 1.0)]
)
def test_larger_images_are_cropped_and_resized_as_torchvision_does(network, size, crop):
    content = with_preprocessing(
        network_bytes(network, opset=18), MEAN, STD, crop=crop, image_size=size
    )
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    for image in pictures(*size):
        found, expected = ask(content, image), by_torchvision(network, image, crop)
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_an_old_opset_has_no_antialiased_resize(network):
    model = network_bytes(network, opset=17)
    with pytest.raises(InvalidInputError, match="opset 17") as caught:
        with_preprocessing(model, MEAN, STD, image_size=(48, 64))
    assert "--opset 18" in str(caught.value)
    # a crop alone needs none
    whole = with_preprocessing(model, MEAN, STD, image_size=(SIDE, SIDE + 6))
    (image,) = pictures(SIDE, SIDE + 6, 1)
    np.testing.assert_allclose(ask(whole, image), by_torchvision(network, image), atol=1e-5)


@pytest.mark.parametrize(("size", "crop"), [((60, 60), 1.0), ((50, 100), 0.875), ((24, 40), 1.0)])
def test_a_model_that_is_wide_crops_so(size, crop):
    space = dn.space("mobile-small", 10, 3, ["24x40"])
    network = build(space, space.smallest()[0]).eval()
    assert network.resolution == "24x40"
    model = with_preprocessing(
        network_bytes(network, opset=18), MEAN, STD, crop=crop, image_size=size
    )
    box = centre(*size, crop, network.resolution)
    assert box.size[1] / box.size[0] == pytest.approx(40 / 24, rel=0.05)
    (image,) = pictures(*size, 1)
    pixels = image[box.top :, box.left :][: box.size[0], : box.size[1]]
    x = torch.from_numpy(normalise(resize(pixels[None], "24x40"), MEAN, STD))
    with torch.no_grad():
        expected = network(x).softmax(1)[0].numpy()
    np.testing.assert_allclose(ask(model, image), expected, atol=0.02)


def test_a_frame_holds_what_the_model_crops():
    image = np.arange(6 * 6 * 3, dtype=np.uint8).reshape(1, 6, 6, 3)
    frame = framed(image, 9, 13, *centre(9, 13, 2 / 3))
    assert frame.shape == (1, 9, 13, 3)
    np.testing.assert_array_equal(frame[0, 2:8, 4:10], image[0])
    assert frame.sum() == image.sum()


@pytest.mark.slow
def test_accuracy_is_the_same_whoever_preprocesses(tmp_path):
    digits = load_digits((), seed=0, max_size=64)
    space = dn.space("mobile-small", digits.num_classes, digits.channels, [16])
    torch.manual_seed(0)
    network = build(space, space.smallest()[0])
    train_network(network, digits, Recipe(epochs=3, batch_size=64, augment_from=99))
    model = network_bytes(network.eval(), opset=18)
    examples = Examples(digits.test, digits.mean, digits.std, 10, 0.8, Resolution(16, 16))
    files = {
        "floats": model,
        "pixels": with_preprocessing(model, digits.mean, digits.std),
        "frames": with_preprocessing(
            model, digits.mean, digits.std, crop=0.8, image_size=(20, 28)
        ),
    }
    found = {}
    for name, content in files.items():
        (path := tmp_path / f"{name}.onnx").write_bytes(content)
        own = examples if name == "frames" else Examples.of(digits, None)
        found[name] = file_accuracy(path, own, lambda text, share: None)
    assert found["floats"] == found["pixels"] == found["frames"]
    assert found["floats"] > 0.3
