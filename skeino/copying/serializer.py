"""`OpaqueSerializer`: state that is carried, not read.

LangGraph writes an object as a msgpack extension that names its class, and makes it again when it is read. A process
that only copies need not have the application's classes, should run none of its code, and must not lose what it cannot
import: LangGraph's own serializer gives None or raw data in its place. Here an extension stays what it is.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde import types

from skeino.errors import InvalidInputError

_OPTION: Final = ormsgpack.OPT_NON_STR_KEYS
_DELTA_SNAPSHOT: Final = 7  # langgraph.checkpoint.serde.jsonplus.EXT_DELTA_SNAPSHOT; older ones have none
_Snapshot: Any = getattr(types, "_DeltaSnapshot", None)


class Sealed:
    """A value as a saver has stored it: the format's name, and the bytes."""

    __slots__ = ("data", "type")

    def __init__(self, type: str, data: bytes) -> None:
        self.type = type
        self.data = data


class Extension:
    """A msgpack extension: an object, of a class that need not be here."""

    __slots__ = ("code", "data")

    def __init__(self, code: int, data: bytes) -> None:
        self.code = code
        self.data = data


class OpaqueSerializer:
    """In place of a saver's `serde`: what was read is written again byte for byte, and no class is imported.

    Snapshots of LangGraph's `DeltaChannel` are shown as what they are, for savers keep them in a place of their own.
    """

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if isinstance(obj, Sealed):
            return obj.type, obj.data
        if obj is None:
            return "null", b""
        if isinstance(obj, bytes):
            return "bytes", obj
        if isinstance(obj, bytearray):
            return "bytearray", bytes(obj)
        return "msgpack", _pack(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        kind, content = data
        if kind == "null":
            return None
        if kind == "bytes":
            return content
        if kind == "bytearray":
            return bytearray(content)
        if kind == "msgpack":
            return _unpack(content)
        if kind == "json" and b'"lc"' not in content:  # which marks an object
            return json.loads(content)
        return Sealed(kind, content)


def sealed(value: Any) -> Any:
    """The value, sealed if it is a number or a text that JSON in a database would change.

    PostgreSQL's saver keeps plain numbers and texts as JSON, which has no NaN and no NUL, and gives 1e23 back as an
    integer. What is sealed it stores as LangGraph's own bytes.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**64 and abs(value) < 10**308:
        number = float(value)  # which it was, as text: msgpack has no such integers
        value = number if int(Decimal(repr(number))) == value else value
    if isinstance(value, float) or (isinstance(value, str) and "\x00" in value):
        return Sealed("msgpack", _pack(value))
    return value


def _pack(value: Any) -> bytes:
    try:
        return ormsgpack.packb(value, default=_default, option=_OPTION)
    except TypeError as exc:
        if "64-bit" in str(exc):
            raise InvalidInputError("A number has more than 64 bits, which no msgpack can hold.") from None
        raise InvalidInputError(
            "A value is in an older or an encrypted format, which cannot stand in a checkpoint that is stored whole."
        ) from exc


def _unpack(content: bytes) -> Any:
    return ormsgpack.unpackb(content, ext_hook=_extension, option=_OPTION)


def _extension(code: int, data: bytes) -> Any:
    if code == _DELTA_SNAPSHOT and _Snapshot is not None:
        return _Snapshot(_unpack(data))
    return Extension(code, data)


def _default(value: Any) -> Any:
    if isinstance(value, Extension):
        return ormsgpack.Ext(value.code, value.data)
    if _Snapshot is not None and isinstance(value, _Snapshot):
        return ormsgpack.Ext(_DELTA_SNAPSHOT, _pack(value.value))
    if isinstance(value, Sealed) and value.type == "msgpack":
        return _unpack(value.data)
    raise TypeError(f"Object of type {type(value).__name__} is not serializable")
