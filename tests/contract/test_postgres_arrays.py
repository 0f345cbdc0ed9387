"""What a batch sends as arrays is what PostgreSQL reads."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from skeino.persistence.postgres.arrays import ARRAYS

IDS = [str(uuid4()) for _ in range(3)]
AHEAD = timezone(timedelta(hours=5, minutes=45))

ITEMS: list[tuple[str, list[Any], list[Any]]] = [
    ("text", ["", "one", "ünï çødé 🧵", 'a "quoted" {list, NULL}', "NULL", "\\"], []),
    ("text", [7, -1], ["7", "-1"]),
    ("bytea", [b"", b"\x00\xff", bytearray(b"two")], [b"", b"\x00\xff", b"two"]),
    ("uuid", IDS, [UUID(one) for one in IDS]),
    (
        "jsonb",
        [Jsonb({}), Jsonb({"key": ["ü", None, 1.5]}), Jsonb(None), Jsonb([])],
        [{}, {"key": ["ü", None, 1.5]}, None, []],
    ),
    ("timestamptz", [datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), datetime(1, 1, 2, tzinfo=UTC)], []),
    ("timestamptz", [datetime(9999, 12, 30, tzinfo=UTC), datetime(1999, 12, 31, 23, 59, tzinfo=AHEAD)], []),
    ("integer", [0, -1, 2**31 - 1, -(2**31)], []),
    ("bigint", [0, -1, 2**63 - 1, -(2**63)], []),
    ("boolean", [True, False], []),
]


@pytest.mark.parametrize("nulls", ["none", "some", "only", "empty"])
@pytest.mark.parametrize(("of_type", "items", "read"), ITEMS)
def test_they_are_read_as_they_were_written(
    postgres_dsn: str, of_type: str, items: list[Any], read: list[Any], nulls: str
) -> None:
    expected = read or items
    if nulls == "some":
        items, expected = [None, *items, None], [None, *expected, None]
    elif nulls == "only":
        items = expected = [None, None]
    elif nulls == "empty":
        items = expected = []
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("SET timezone TO 'UTC'")
        found = connection.execute("SELECT %b, pg_typeof(%b)::oid", 2 * [ARRAYS[of_type](items)]).fetchone()
        assert found is not None
        assert found[0] == expected
        assert found[1] == psycopg.adapters.types[of_type].array_oid


@pytest.mark.parametrize(
    ("of_type", "item"),
    [("text", "\ud800"), ("integer", 2**31), ("uuid", "no id"), ("timestamptz", "now")],
)
def test_what_cannot_be_written_is_no_other_value(postgres_dsn: str, of_type: str, item: Any) -> None:
    with psycopg.connect(postgres_dsn) as connection, pytest.raises(Exception):  # noqa: B017, PT011 – of any kind
        connection.execute("SELECT %b", [ARRAYS[of_type]([item])])
