"""The bill of materials of an export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploynas.artifacts import sha256
from deploynas.export import Manifest
from deploynas.export.materials import FILE_NAME, bill_of_materials

pytestmark = pytest.mark.slow

EXPORT = Path(__file__).parents[2] / "exports" / "fashion-mnist"
INPUTS = {"/home/somebody/profiles/cpu.json": "1" * 64, "runs/r/supernet.safetensors": "2" * 64}


def bill(inputs=INPUTS):
    manifest = Manifest.read(EXPORT / "manifest.json")
    return bill_of_materials("fashion-mnist", manifest, inputs)


def test_it_names_weights_data_and_libraries():
    document = json.loads(bill())
    model = document["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": sha256(EXPORT / "model.onnx")}]
    parts = {part["name"]: part for part in document["components"]}
    assert parts["fashion-mnist"]["licenses"] == [{"license": {"name": "MIT"}}]
    assert parts["supernet.safetensors"]["hashes"][0]["content"] == "2" * 64
    assert parts["onnx"]["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert {"torch", "deploynas", "onnxruntime"} <= parts.keys()
    (needs,) = document["dependencies"]
    assert len(needs["dependsOn"]) == len(document["components"]) == len(set(needs["dependsOn"]))


def test_it_is_equal_for_equal_exports_and_tells_no_folder():
    assert bill() == bill()
    assert bill() != bill({})
    assert b"somebody" not in bill()


def test_it_is_what_the_standard_says():
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    assert validator.validate_str(bill().decode()) is None
    wrong = bill().decode().replace('"SHA-256"', '"SHA-0"')
    assert validator.validate_str(wrong) is not None


def test_it_is_beside_what_ships():
    shipped = json.loads((EXPORT / FILE_NAME).read_text())
    assert shipped["metadata"]["component"]["hashes"][0]["content"] == sha256(
        EXPORT / "model.onnx"
    )
