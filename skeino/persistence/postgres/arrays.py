"""Columns of a batch as arrays, in PostgreSQL's binary format (`array_send` in its arrayfuncs.c).

psycopg would do this, too: for each array it looks for an item that says of which type they are, and then for what
writes those. Here the statement has said it: that takes a third of the time, and an array without items, of NULLs, or
of larger numbers than the one before has the same type, so that the server plans a statement once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.json import Jsonb

from skeino.persistence.postgres.jsonb import json_bytes

_HEAD: Final = struct.Struct("!iiIii").pack  # dimensions, whether there are NULLs, type; length, first index
_EMPTY: Final = struct.Struct("!iiI").pack
_LENGTH: Final = struct.Struct("!i").pack
_NULL: Final = _LENGTH(-1)
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Array:
    """An array of one type; `ARRAYS` has the classes."""

    __slots__ = ("items",)

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items


class _ArrayDumper(Dumper):
    format = Format.BINARY
    item_oid: int
    encoded: Callable[[Any], bytes]

    def dump(self, obj: Array) -> bytes:
        items = obj.items
        if not items:
            return _EMPTY(0, 0, self.item_oid)
        encoded = self.encoded
        parts = [_HEAD(1, None in items, self.item_oid, len(items), 1)]
        for item in items:
            if item is None:
                parts.append(_NULL)
            else:
                data = encoded(item)
                parts.append(_LENGTH(len(data)))
                parts.append(data)
        return b"".join(parts)


def _array(name: str, encoded: Callable[[Any], bytes]) -> type[Array]:
    of_type = psycopg.adapters.types[name]
    array = type(f"ArrayOf{name.capitalize()}", (Array,), {"__slots__": ()})
    attributes = {"oid": of_type.array_oid, "item_oid": of_type.oid, "encoded": staticmethod(encoded)}
    psycopg.adapters.register_dumper(array, type(f"{array.__name__}Dumper", (_ArrayDumper,), attributes))
    return array


def _text(value: object) -> bytes:
    return value.encode() if isinstance(value, str) else str(value).encode()  # a channel's version may be a number


def _uuid(text: str) -> bytes:
    return bytes.fromhex(text.replace("-", ""))


def _time(moment: datetime) -> bytes:
    return _BIGINT((moment - _EPOCH) // _MICROSECOND)


def _json(value: Jsonb) -> bytes:
    return b"\x01" + json_bytes(value.obj)  # the version of its binary format


_BIGINT: Final = struct.Struct("!q").pack

ARRAYS: Final[Mapping[str, type[Array]]] = {
    "text": _array("text", _text),
    "bytea": _array("bytea", bytes),
    "uuid": _array("uuid", _uuid),
    "jsonb": _array("jsonb", _json),
    "timestamptz": _array("timestamptz", _time),
    "integer": _array("int4", struct.Struct("!i").pack),
    "bigint": _array("int8", _BIGINT),
    "boolean": _array("bool", struct.Struct("!?").pack),
}
"""By the type of their items, as SQL has its name."""
