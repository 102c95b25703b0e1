"""The picture of a validation."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from deploynas.device import Estimate
from deploynas.errors import OutputError
from deploynas.profile.validate import Judgement
from deploynas.report.validation import draw_validation

pytestmark = pytest.mark.slow

MEASURED = [Estimate(ms, ms * 0.99, ms * 1.01, 10) for ms in np.linspace(1, 3, 12)]
JUDGEMENT = Judgement(
    np.zeros((12, 1)),
    np.linspace(1.01, 3.2, 12),
    np.linspace(1.5, 4, 12),
    MEASURED,
    [0.01] * 12,
    0.02,
)


@pytest.mark.slow
def test_picture_is_drawn(tmp_path):
    path = tmp_path / "new" / "validation.png"
    draw_validation(JUDGEMENT, "a space\na device", path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 600
        assert len(image.convert("RGB").getcolors(1_000_000)) > 50


def test_without_matplotlib_nothing_is_written(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        draw_validation(JUDGEMENT, "a space", tmp_path / "validation.png")
    assert not list(tmp_path.iterdir())


def test_unwritable_place(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        draw_validation(JUDGEMENT, "a space", tmp_path)
