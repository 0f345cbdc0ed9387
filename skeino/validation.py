"""What may be stored: ids and JSON values, checked once at the edge, before anything is written.

The rules are the strictest of all backends', so that the same input has the same fate on each: PostgreSQL
refuses NUL and lone surrogates, JSON has no NaN, MongoDB has 64-bit integers.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from skeino.errors import InvalidInputError

MAX_ID_CHARACTERS = 255
MAX_JSON_BYTES = 256 * 1024
MAX_JSON_DEPTH = 32
_FORGOTTEN = frozenset({"None", "null", "undefined"})
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**63 - 1

Scalar = str | int | float | bool | None


def validate_thread_id(value: object) -> str:
    """The thread id itself, if it is one: printable text (`str.isprintable`) of 1 to 255 characters.

    The words "None", "null" and "undefined" are refused: they are what a missing id becomes (LangGraph's
    `aget_state` writes `str(None)`, JavaScript the other two), and all who forget theirs would share that thread.

    Raises:
        InvalidInputError: it is not; the message repeats nothing of the value.
    """
    if isinstance(value, str) and value in _FORGOTTEN:
        raise InvalidInputError(f"thread_id is {str.__str__(value)!r}, which a missing one becomes: give each its own.")
    return validate_id(value, "thread_id")


def validate_id(value: object, name: str) -> str:
    """As `validate_thread_id`, for any id; `name` is what the error calls it."""
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a string, not {type(value).__name__}.")
    if len(value) > MAX_ID_CHARACTERS:
        raise InvalidInputError(f"{name} has {len(value)} characters: at most {MAX_ID_CHARACTERS} are allowed.")
    if not value.strip():
        raise InvalidInputError(f"{name} is empty: it must have 1 to {MAX_ID_CHARACTERS} printable characters.")
    if not value.isprintable():  # control characters, NUL, lone surrogates, line separators
        raise InvalidInputError(f"{name} has a character that is not printable: remove it.")
    return str.__str__(value)


def validate_text(value: object, name: str) -> str:
    """Any text that every backend stores: no NUL, no lone surrogate.

    Raises:
        InvalidInputError: it is not.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a string, not {type(value).__name__}.")
    _checked_text_size(value, name)
    return value


def validate_run_id(value: object) -> str:
    """The run id itself, if it is a UUID in its canonical text form.

    Raises:
        InvalidInputError: it is not.
    """
    if isinstance(value, str) and _UUID.fullmatch(value):
        return str.__str__(value)
    raise InvalidInputError("run_id must be a UUID in its canonical form (36 characters, lower case).")


def validate_json_object(value: object, name: str) -> dict[str, Any]:
    """A deep copy of a JSON object that every backend stores faithfully.

    Allowed are objects with string keys, arrays, text without NUL and lone surrogates, finite numbers
    (integers of 64 bits), booleans and None, at most 32 deep and about 256 KiB in all.

    Raises:
        InvalidInputError: it is not one; the message says where, and repeats no value.
    """
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{name} must be a mapping, not {type(value).__name__}.")
    if not value:
        return {}  # most are: a run's metadata, say
    budget = [MAX_JSON_BYTES]  # counted down while copying, so that a huge value costs no more than the limit
    copied: dict[str, Any] = _copy_json(value, name, 0, budget)
    if budget[0] < 0:
        raise _too_large(name)
    return copied


def validate_stored_json_object(value: object, name: str) -> dict[str, Any]:
    """As `validate_json_object`, of any size and one level deeper: what stores have merged, or put into another."""
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{name} must be a mapping, not {type(value).__name__}.")
    copied: dict[str, Any] = _copy_json(value, name, -1, [sys.maxsize])
    return copied


def validate_optional_json_object(value: object, name: str) -> dict[str, Any]:
    """As `validate_json_object`; None is an empty object."""
    return {} if value is None else validate_json_object(value, name)


def validate_json_value(value: object, name: str) -> Any:
    """As `validate_json_object`, of any JSON value and of any size.

    Raises:
        InvalidInputError: it is none.
    """
    return _copy_json(value, name, 0, [sys.maxsize])


def validate_metadata_filter(value: object) -> dict[str, Scalar]:
    """A copy of a metadata filter: top-level keys, each with the scalar that it must equal.

    Raises:
        InvalidInputError: a value is an object or an array, or is no JSON.
    """
    copied = validate_json_object(value, "the metadata filter")
    for key, wanted in copied.items():
        if isinstance(wanted, dict | list):
            raise InvalidInputError(f"The metadata filter's {key[:40]!r} must be a text, number, boolean or None.")
    return copied


def _copy_json(value: object, where: str, depth: int, budget: list[int]) -> Any:
    budget[0] -= 8
    if budget[0] < 0:
        raise _too_large(where.split("[")[0])
    if depth > MAX_JSON_DEPTH:
        raise InvalidInputError(f"{where[:80]} is nested more than {MAX_JSON_DEPTH} deep.")
    if isinstance(value, str):  # of a subclass, an enumeration's say, the plain value is kept
        budget[0] -= _checked_text_size(value, where)
        return str.__str__(value)
    if isinstance(value, Mapping):
        copied = {}
        for key, item in value.items():
            if type(item) is str and type(key) is str and _is_plain(key) and _is_plain(item):
                budget[0] -= 8 + len(key) + len(item)  # most are: no need to say where a fault is
                if budget[0] < 0:
                    raise _too_large(where.split("[")[0])
                copied[key] = item
                continue
            if not isinstance(key, str):
                raise InvalidInputError(f"{where} has a key that is no string ({type(key).__name__}).")
            budget[0] -= _checked_text_size(key, f"a key of {where}")
            plain = str.__str__(key)
            copied[plain] = _copy_json(item, f"{where}[{plain[:40]!r}]", depth + 1, budget)
        return copied
    if isinstance(value, list | tuple):
        return [_copy_json(item, f"{where}[{index}]", depth + 1, budget) for index, item in enumerate(value)]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        if not _MIN_INTEGER <= value <= _MAX_INTEGER:
            raise InvalidInputError(f"{where} is an integer of more than 64 bits: store it as text.")
        return int.__index__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInputError(f"{where} is not a finite number, which JSON cannot hold.")
        return float.__float__(value)
    raise InvalidInputError(f"{where} is a {type(value).__name__}, which JSON cannot hold.")


def _is_plain(text: str) -> bool:
    """Whether it is text of one byte per character, and none of them NUL."""
    return text.isascii() and "\x00" not in text


def _too_large(name: str) -> InvalidInputError:
    return InvalidInputError(f"{name} is larger than {MAX_JSON_BYTES // 1024} KiB.")


def _checked_text_size(text: str, where: str) -> int:
    if "\x00" in text:
        raise InvalidInputError(f"{where} has a NUL character: remove it.")
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidInputError(f"{where} has a lone surrogate, which is no Unicode text.") from None


def validate_time(value: object, name: str) -> datetime:
    """The same moment in UTC.

    Raises:
        InvalidInputError: it is no datetime, has no time zone, or lies outside the years 2 to 9998: at the ends of
            the calendar some time zone has no name for a moment of another.
    """
    if not isinstance(value, datetime):
        raise InvalidInputError(f"{name} must be a datetime, not {type(value).__name__}.")
    if value.utcoffset() is None:
        raise InvalidInputError(f"{name} has no time zone: use datetime.now(UTC) or .replace(tzinfo=UTC).")
    if not 2 <= value.year <= 9998:
        raise InvalidInputError(f"{name} is not in the years 2 to 9998.")
    return value.astimezone(UTC)
