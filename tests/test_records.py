"""Whatever a record says is read again as it was written, and not otherwise."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from deploynas.artifacts import Artifact, Record, digest
from deploynas.errors import InvalidInputError
from deploynas.journal import Journal

pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(exclude_categories=("Cs",)))


class Line(Record):
    name: str
    value: float
    sizes: dict[str, int]


class Page(Artifact):
    SCHEMA = "deploynas-page"
    VERSION = 1
    ANEW = "write it again"

    title: str
    lines: tuple[Line, ...]


LINES = st.builds(
    Line, name=WORDS, value=NUMBERS, sizes=st.dictionaries(WORDS, st.integers(), max_size=3)
)
PAGES = st.builds(Page, title=WORDS, lines=st.lists(LINES, max_size=4).map(tuple))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | WORDS,
    lambda own: st.lists(own, max_size=3) | st.dictionaries(WORDS, own, max_size=3),
    max_leaves=12,
)


@given(PAGES)
@settings(deadline=None, max_examples=60)
def test_a_page_is_read_as_it_was_written(page: Page) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert Page.read(page.write(Path(folder) / "page.json")) == page


@given(PAGES, st.data())
@settings(deadline=None, max_examples=60)
def test_a_page_with_another_value_is_none(page: Page, data: st.DataObject) -> None:
    document = page.document()
    key = data.draw(st.sampled_from([*document]))
    other = data.draw(VALUES)
    same = json.dumps(document[key]) == json.dumps(other)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.json"
        path.write_text(json.dumps(document | {key: other}))
        if same:
            assert Page.read(path) == page
        else:
            with pytest.raises(InvalidInputError, match=r"page\.json"):
                Page.read(path)


@given(st.dictionaries(WORDS, VALUES, max_size=5), st.sampled_from([None, 1, 4]))
@settings(deadline=None, max_examples=100)
def test_a_digest_is_of_what_is_said(document: dict[str, object], indent: int | None) -> None:
    text = json.dumps(document, indent=indent, sort_keys=bool(indent))
    assert digest(json.loads(text)) == digest(document)


@given(st.lists(LINES, min_size=1, max_size=5), st.data())
@settings(deadline=None, max_examples=60)
def test_a_journal_holds_what_was_written_up_to_the_damage(
    lines: list[Line], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        with Journal[Line](path, Line, "it") as journal:
            for line in lines:
                journal.append(line)
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            del content[at:]
        else:
            content[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        with Journal[Line](path, Line, "it") as journal:
            kept = len(journal.entries)
            assert journal.entries == lines[:kept]
            assert kept < len(lines)
            for line in lines[kept:]:
                journal.append(line)
        with Journal[Line](path, Line, "it") as journal:
            assert journal.entries == lines
