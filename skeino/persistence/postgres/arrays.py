"""Columns of a batch as arrays, in PostgreSQL's binary format (`array_send` in its arrayfuncs.c).

psycopg would do this, too: for each array it looks for an item that says of which type they are, and then for what
writes those. Here the statement has said it: that takes a third of the time, and an array without items, of NULLs, or
of larger numbers than the one before has the same type, so that the server plans a statement once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final, Self

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
    """An array of one type; `ARRAYS` has the classes.

    Args:
        items: as `item` makes them.
    """

    __slots__ = ("count", "has_null", "parts")

    item: ClassVar[Callable[[Any], bytes]]
    """A value as an item of the array."""
    encoded: ClassVar[Callable[[Any], bytes]]
    """The same without its length, of what is not None."""

    def __init__(self, items: Sequence[bytes]) -> None:
        self.count = len(items)
        self.has_null = _NULL in items
        self.parts = items

    @classmethod
    def of(cls, values: Sequence[Any]) -> Self:
        """Of values, of which none is copied more often than it must be."""
        encoded, parts = cls.encoded, []
        for value in values:
            if value is None:
                parts.append(_NULL)
            else:
                data = encoded(value)
                parts.append(_LENGTH(len(data)))
                parts.append(data)
        array = cls(parts)
        array.count, array.has_null = len(values), None in values
        return array


class _ArrayDumper(Dumper):
    format = Format.BINARY
    item_oid: int

    def dump(self, obj: Array) -> bytes:
        if not obj.count:
            return _EMPTY(0, 0, self.item_oid)
        return b"".join((_HEAD(1, obj.has_null, self.item_oid, obj.count, 1), *obj.parts))


def _array(name: str, encoded: Callable[[Any], bytes]) -> type[Array]:
    def item(value: Any) -> bytes:
        if value is None:
            return _NULL
        data = encoded(value)
        return _LENGTH(len(data)) + data

    of_type = psycopg.adapters.types[name]
    attributes = {"__slots__": (), "item": staticmethod(item), "encoded": staticmethod(encoded)}
    array = type(f"ArrayOf{name.capitalize()}", (Array,), attributes)
    dumper = type(f"{array.__name__}Dumper", (_ArrayDumper,), {"oid": of_type.array_oid, "item_oid": of_type.oid})
    psycopg.adapters.register_dumper(array, dumper)
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
