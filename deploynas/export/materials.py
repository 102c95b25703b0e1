"""What went into an export, as CycloneDX 1.6 (ECMA-424): weights, data, libraries, licences."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import uuid
from collections.abc import Mapping

from deploynas.export.manifest import ONNX_NAME, Manifest

FILE_NAME = "sbom.cdx.json"
_UNKNOWN = "not known here"
_OF_DATA = {"fashion-mnist": "MIT", "/usr/share/datasets/fashion-mnist": "MIT"}


def bill_of_materials(name: str, manifest: Manifest, inputs: Mapping[str, str]) -> bytes:
    """The document, equal for equal exports.

    Args:
        name: Of the export.
        manifest: Of it.
        inputs: Path -> SHA-256 of the files that its search read: weights, profiles.
    """
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": name,
        "version": manifest.model_sha256[:12],
        "hashes": [_sha256(manifest.model_sha256)],
        "properties": _properties(
            file=ONNX_NAME, weights=manifest.weights, space=str(manifest.space["name"])
        ),
        "licenses": _licence(_UNKNOWN),
    }
    data = {
        "type": "data",
        "bom-ref": "data",
        "name": _last(manifest.data_source) or "no data",
        "properties": _properties(
            fingerprint=manifest.data_fingerprint or "none", classes=str(len(manifest.classes))
        ),
        "licenses": _licence(_OF_DATA.get(manifest.data_source, _UNKNOWN)),
    }
    files = [
        {
            "type": "file", "bom-ref": f"file-{i}", "name": _last(path),
            "hashes": [_sha256(digest)],
        }
        for i, (path, digest) in enumerate(sorted(inputs.items()))
    ]  # fmt: skip
    libraries = [
        {
            "type": "library", "bom-ref": f"pkg:pypi/{library}@{version}", "name": library,
            "version": version, "purl": f"pkg:pypi/{library}@{version}",
            "licenses": _licence(_licence_of(library)),
        }
        for library, version in sorted(manifest.versions.items())
    ]  # fmt: skip
    parts = [data, *files, *libraries]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": model},
        "components": parts,
        "dependencies": [{"ref": "model", "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    told = hashlib.sha256(json.dumps(document).encode()).digest()
    document["serialNumber"] = uuid.UUID(bytes=told[:16], version=4).urn
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _properties(**named: str) -> list[dict[str, str]]:
    return [{"name": f"deploynas:{name}", "value": value} for name, value in named.items()]


def _licence(name: str) -> list[dict[str, dict[str, str]]]:
    return [{"license": {"name": name}}]


def _licence_of(library: str) -> str:
    """As its package says: an expression, a short text, or what the index lists."""
    try:
        said = importlib.metadata.metadata(library).json
    except importlib.metadata.PackageNotFoundError:
        return _UNKNOWN
    listed = [
        text.rpartition(" :: ")[2]
        for text in said.get("classifier", [])
        if text.startswith("License :: ")
    ]
    text = str(said.get("license_expression") or said.get("license") or ", ".join(listed))
    return text.splitlines()[0][:120] if text else _UNKNOWN


def _last(path: str) -> str:
    """A file's name alone: where it lay is nobody else's to know."""
    return path.rstrip("/").rpartition("/")[2]
