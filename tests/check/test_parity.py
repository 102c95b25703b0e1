"""Whether a runtime answers as ONNX Runtime does: one rule, wherever it is asked."""

from __future__ import annotations

import numpy as np
import pytest

from deploynas.check.verdict import _outputs, parity_gate
from deploynas.device import LocalDevice
from deploynas.export import formats
from deploynas.export.formats import difference_between, in_format, tolerance
from deploynas.graph.emit import RandomWeights, write_model
from deploynas.graph.model_file import ModelFile
from deploynas.runtimes import RUNTIMES
from deploynas.spaces.layers import Layer, chain

pytestmark = pytest.mark.slow


class Shifted(LocalDevice):
    """A device of ncnn, by its word, that answers as ONNX Runtime does but for a share."""

    def __init__(self, share):
        super().__init__()
        self.share = share
        self.identity = self.identity.model_copy(update={"runtime": "ncnn 1.0"})

    def answers(self, model, feeds):
        found = super().answers(model, feeds)
        deviation = np.concatenate([np.ravel(x) for one in found for x in one]).std()
        return [[x + np.float32(self.share * deviation) for x in one] for one in found]


@pytest.fixture
def float32(tmp_path):
    layers = [Layer("conv", 3, 8, 16, 16, kernel_size=3, stride=2), Layer("head", 8, 10, 8, 8)]
    return write_model(tmp_path / "model.onnx", chain(layers), RandomWeights())


@pytest.mark.parametrize(
    ("share", "kind", "verdict"),
    [
        (5e-5, "float32", "pass"), (2e-4, "float32", "failed-gate"),
        (0.11, "int8", "pass"), (0.3, "int8", "failed-gate"),
    ],
)  # fmt: skip
def test_a_file_that_is_converted_is_compared(share, kind, verdict, request):
    path = request.getfixturevalue(kind)
    gate = _outputs(path, path, None, Shifted(share), {})
    assert gate.verdict == verdict
    assert f"{share:.1e} of the outputs' deviation" in gate.reason
    assert ModelFile(path).is_quantized == (kind == "int8")
    own = _outputs(path, path, None, LocalDevice(), {})
    assert (own.verdict, own.reason) == ("pass", "outputs are finite")


def test_an_int8_file_in_another_format_may_round_otherwise(int8, monkeypatch):
    runtime = RUNTIMES.load("openvino")
    pytest.importorskip("openvino")
    monkeypatch.setattr(formats, "difference_of", lambda device, path, model: 0.11)
    _, converted = in_format(runtime, int8.read_bytes())
    assert converted.difference == 0.11


def test_what_is_not_a_number_is_never_near():
    """Whichever of several answers it is in."""
    near, broken = np.array([1.0, 3.0]), np.array([1.0, np.nan])
    assert difference_between([near + 0.1, near], [near, near]) == pytest.approx(0.1)
    difference = difference_between([near, broken], [near, near])
    assert np.isnan(difference)
    assert parity_gate(difference, tolerance(quantized=True)).verdict == "failed-gate"
    assert difference_between([near[:1]], [near]) == np.inf
    assert difference_between([near[:0]], [near[:0]]) == 0.0
