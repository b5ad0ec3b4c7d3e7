"""Every event survives the journal, and whatever a newer version writes is skipped, not fatal."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_engine import events as e
from awq_engine.journal import parse_line
from awq_engine.shapes import LARGEST

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(1 - LARGEST, LARGEST - 1)
VALUES: dict[object, st.SearchStrategy] = {
    int: WHOLE,
    float: FLOATS,
    str: st.text(),
    bool: st.booleans(),
    float | None: st.none() | FLOATS,
    int | None: st.none() | WHOLE,
    list[str]: st.lists(st.text(), max_size=3),
    list[list[str]]: st.lists(st.lists(st.text(), max_size=2), max_size=3),
    list[list[float]]: st.lists(st.lists(FLOATS, max_size=2), max_size=3),
    list[int]: st.lists(WHOLE, max_size=3),
    dict[str, float]: st.dictionaries(st.text(), FLOATS, max_size=3),
    dict[str, str]: st.dictionaries(st.text(), st.text(), max_size=3),
    dict[str, typing.Any]: st.dictionaries(st.text(), FLOATS | st.text(), max_size=3),
}


def events(kind: type[e.Event]) -> st.SearchStrategy[e.Event]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{field.name: _values(hints[field.name]) for field in dataclasses.fields(kind)})


def _values(kind: typing.Any) -> st.SearchStrategy:
    """Of a field, or of what its list holds: some fields have dictionaries with keys of their own."""
    if kind in VALUES:
        return VALUES[kind]
    if typing.is_typeddict(kind):
        return st.fixed_dictionaries({name: _values(hint) for name, hint in typing.get_type_hints(kind).items()})
    return st.lists(_values(*typing.get_args(kind)), max_size=2)


@pytest.mark.parametrize("kind", e.EVENTS)
@given(data=st.data())
def test_event_survives_the_journal(kind: str, data: st.DataObject) -> None:
    record = e.Record(data.draw(WHOLE), 12.5, data.draw(events(e.EVENTS[kind])))
    assert parse_line(json.dumps(record.to_json()).encode()) == record


def test_kinds_are_snake_case_names() -> None:
    assert e.EVENTS["block_started"] is e.BlockStarted
    assert e.EVENTS["run_failed"] is e.RunFailed
    assert len(e.EVENTS) == len(e.Event.__subclasses__())


def test_unknown_kind_is_skipped_and_unknown_fields_are_ignored() -> None:
    assert e.Record.from_json({"seq": 1, "time": 0, "kind": "invented"}) is None
    known = {"seq": 1, "time": 0, "kind": "warned", "message": "m", "novelty": 3}
    assert e.Record.from_json(known) == e.Record(1, 0.0, e.Warned("m"))


def test_missing_field_is_skipped() -> None:
    assert e.Record.from_json({"seq": 1, "time": 0, "kind": "warned"}) is None
