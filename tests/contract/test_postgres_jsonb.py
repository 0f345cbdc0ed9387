"""What is written for a `jsonb` is stored as what Python's own `json` would have written."""

import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.types.json import set_json_dumps

from skeino.persistence.postgres.jsonb import json_bytes

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
NUMBERS = st.integers() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@dataclasses.dataclass
class Data:
    value: int = 1


@pytest.fixture(scope="module")
def connection(module_database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(module_database, autocommit=True) as opened:
        yield opened


@settings(deadline=None)  # a slow server is no fault
@given(value=VALUES)
def test_it_is_stored_as_json_would_have_it(connection: psycopg.Connection[Any], value: Any) -> None:
    ours, pythons = json_bytes(value).decode(), json.dumps(value)
    row = connection.execute("SELECT %s::text::jsonb::text, %s::text::jsonb::text", (ours, pythons)).fetchone()
    assert row is not None
    assert row[0] == row[1]


@pytest.mark.parametrize("value", [{1: 2, None: [True]}, ("a", ("b",)), {"n": 2**64}, {"n": -(2**63) - 1}])
def test_what_only_json_writes_is_written(value: Any) -> None:
    assert json.loads(json_bytes(value)) == json.loads(json.dumps(value))


@pytest.mark.parametrize("value", [datetime.now(UTC), Data(), object(), {"in": [Data()]}, b"bytes", {1, 2}])
def test_what_json_refuses_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        json_bytes(value)


def test_what_psycopg_was_told_to_write_it_writes() -> None:
    set_json_dumps(lambda value: json.dumps(value, default=str))
    try:
        assert json_bytes({"day": datetime(2026, 1, 2, tzinfo=UTC)}) == b'{"day": "2026-01-02 00:00:00+00:00"}'
    finally:
        set_json_dumps(json.dumps)
