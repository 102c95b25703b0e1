"""Damage of files, drawn at random: of their bytes, and of what they hold."""

from __future__ import annotations

import copy
import gzip
import io
import json
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message

from deploynas.artifacts import DIGEST, digest

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]


def nested(depth: int) -> list[Any]:
    """A list of a list of a list ..."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 1e308, -1e308, 1e-308, 0.5, 10**30, -(10**30), 2**31, 2**63,
    "", "x", "x" * 5000, "é\u0000\ud800", "../../../../etc/passwd", "/etc/passwd", "NaN", "1", [],
    {}, [1], {"a": 1}, [[]], nested(300), {"name": "mobile-small"}, "exec:false", 10**400,
)  # fmt: skip
WORDS = ("", "0", "-1", "1", "99999999999", "1e400", "nan", "[]", "{}", "''", '"', "\\", "\x00",
         "é", "true", "[[", "]]", "=", "#", "\ufeff", "x" * 3000, "0x1")  # fmt: skip


def of_bytes(content: bytes, rng: Rng) -> bytes:
    """Bits flipped, ranges zeroed, drawn anew, cut out, doubled or moved; or the end is gone."""
    out = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        if not out:
            return bytes(rng.integers(0, 256, 20, dtype=np.uint8))
        at = int(rng.integers(len(out)))
        length = int(min(len(out) - at, rng.geometric(0.05)))
        part = out[at : at + length]
        match int(rng.integers(8)):
            case 0 | 1:
                out[at] ^= 1 << int(rng.integers(8))
            case 2:
                out[at : at + length] = bytes(length)
            case 3:
                out[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
            case 4:
                del out[at : at + length]
            case 5:
                out[at:at] = part
            case 6:
                del out[at:]
            case 7:
                to = int(rng.integers(len(out)))
                out[to:to] = part
    return bytes(out)


def of_value(document: Any, rng: Rng) -> Any:
    """A JSON document with one of its values odd, gone, doubled, renamed or of another place."""
    document = copy.deepcopy(document)
    places: list[tuple[Any, Any]] = []
    todo = [document] if isinstance(document, dict | list) else []
    while todo:
        one = todo.pop()
        pairs = one.items() if isinstance(one, dict) else enumerate(one)
        for key, value in pairs:
            places.append((one, key))
            if isinstance(value, dict | list):
                todo.append(value)
    if not places:
        return ODD[int(rng.integers(len(ODD)))]
    parent, key = places[int(rng.integers(len(places)))]
    other_parent, other = places[int(rng.integers(len(places)))]
    value = parent[key]
    match int(rng.integers(7)):
        case 0 | 1:
            parent[key] = ODD[int(rng.integers(len(ODD)))]
        case 2:
            del parent[key]
        case 3 if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(value))
        case 3:
            parent[f"{key}x"] = parent.pop(key)
        case 4:
            parent[key] = copy.deepcopy(other_parent[other])
        case _ if isinstance(value, bool) or not isinstance(value, int | float | str):
            parent[key] = ODD[int(rng.integers(len(ODD)))]
        case _ if isinstance(value, str):
            parent[key] = of_bytes(value.encode(), rng).decode("latin1")
        case _:
            parent[key] = (value * 2, -value, value + 1, value / 3)[int(rng.integers(4))]
    return document


def of_json(content: bytes, rng: Rng) -> bytes:
    """Of what the document says; a third of them with a digest that fits again."""
    document = of_value(json.loads(content), rng)
    if isinstance(document, dict) and DIGEST in document and rng.random() < 1 / 3:
        try:
            document[DIGEST] = digest(document)
        except ValueError:
            pass  # of a number of thousands of digits
    return as_text(document, rng).encode("utf-8", "surrogatepass")


def as_text(document: Any, rng: Rng) -> str:
    """JSON of any form."""
    indent = (None, 1, 4)[int(rng.integers(3))]
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(document, indent=indent, ensure_ascii=bool(rng.integers(2)))
    finally:
        sys.set_int_max_str_digits(4300)


def of_lines(content: bytes, rng: Rng) -> bytes:
    """Lines gone, doubled, swapped, or with one word of theirs odd."""
    lines = content.decode("utf-8", "replace").splitlines(keepends=True)
    if not lines:
        return b"x"
    at, to = (int(x) for x in rng.integers(len(lines), size=2))
    match int(rng.integers(6)):
        case 0:
            del lines[at]
        case 1:
            lines.insert(to, lines[at])
        case 2:
            lines[at], lines[to] = lines[to], lines[at]
        case 3:
            lines[at] = lines[at].rstrip("\n")
        case _:
            words = lines[at].split(" ")
            words[int(rng.integers(len(words)))] = WORDS[int(rng.integers(len(WORDS)))]
            lines[at] = " ".join(words)
            lines[at] += "" if lines[at].endswith("\n") else "\n"
    return "".join(lines).encode("utf-8", "surrogatepass")


def of_json_lines(content: bytes, rng: Rng) -> bytes:
    """One of the documents, or the lines that hold them."""
    lines = content.splitlines(keepends=True)
    if rng.random() < 0.5 or not lines:
        return of_lines(content, rng)
    at = int(rng.integers(len(lines)))
    lines[at] = json.dumps(of_value(json.loads(lines[at]), rng), default=str).encode() + b"\n"
    return b"".join(lines)


def of_safetensors(content: bytes, rng: Rng) -> bytes:
    """Of the head: shapes, types, places, metadata."""
    length = int.from_bytes(content[:8], "little")
    head = of_value(json.loads(content[8 : 8 + length]), rng)
    text = json.dumps(head, default=str).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def of_onnx(content: bytes, rng: Rng) -> bytes:
    """A field of the model, or of anything in it."""
    model = onnx.ModelProto.FromString(content)
    messages: list[Message] = []
    todo: list[Message] = [model]
    while todo:
        one = todo.pop()
        messages.append(one)
        for field, value in one.ListFields():
            if field.message_type is not None:
                todo += [value] if isinstance(value, Message) else list(value)
    one = messages[int(rng.integers(len(messages)))]
    fields = one.DESCRIPTOR.fields
    field = fields[int(rng.integers(len(fields)))]
    value = getattr(one, field.name)
    is_list = hasattr(value, "append") or hasattr(value, "add")
    try:
        if is_list and len(value) and rng.random() < 0.5:
            del value[int(rng.integers(len(value)))]
        elif is_list and field.message_type is not None:
            if len(value):
                value.add().CopyFrom(value[int(rng.integers(len(value)))])
            else:
                value.add()
        elif field.message_type is not None:
            if one.HasField(field.name) and rng.random() < 0.5:
                one.ClearField(field.name)
            else:
                value.SetInParent()
        else:
            odd = _odd_scalar(field.cpp_type, rng)
            value.append(odd) if is_list else setattr(one, field.name, odd)
    except (ValueError, TypeError):  # no such value of an enumeration
        one.ClearField(field.name)
    return bytes(model.SerializeToString())


def _odd_scalar(kind: int, rng: Rng) -> Any:
    choices: tuple[Any, ...]
    if kind in (1, 3, 8, 2, 4):  # whole numbers and enumerations of protobuf
        choices = (0, 1, 2, 7, 255, 2**31 - 1, *(() if kind in (3, 4) else (-1, -(2**31))))
        choices += (2**62,) if kind in (2, 4) else ()
    elif kind in (5, 6):
        choices = (0.0, -1.0, float("nan"), float("inf"))
    elif kind == 7:
        choices = (True, False)
    else:
        choices = ("", "x", "Conv", "../x", "/etc/passwd", "x" * 3000)
    return choices[int(rng.integers(len(choices)))]


def of_gzip(inner: Mutation) -> Mutation:
    """What is packed, or the pack."""

    def mutation(content: bytes, rng: Rng) -> bytes:
        if rng.random() < 0.5:
            return of_bytes(content, rng)
        return gzip.compress(inner(gzip.decompress(content), rng), 1)

    return mutation


def of_zip(content: bytes, rng: Rng) -> bytes:
    """A file of the archive, its name, or the archive."""
    if rng.random() < 0.4:
        return of_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = int(rng.integers(len(files)))
    name, own = files[at]
    files[at] = (name, of_bytes(own, rng)) if rng.random() < 0.8 else (f"../{name}", own)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, own in files:
            archive.writestr(name, own)
    return out.getvalue()
