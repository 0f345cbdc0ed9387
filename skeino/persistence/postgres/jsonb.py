"""JSON for a `jsonb`, which keeps the values and not how they were spelt: so the fastest writer of it will do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import orjson
import psycopg
from psycopg.adapt import PyFormat
from psycopg.types.json import Jsonb

_AS_JSON: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
_SCALARS: Final = frozenset((str, int, float, bool, type(None)))


def json_bytes(value: Any) -> bytes:
    """The value's JSON, in a fraction of the time that `json` takes.

    What orjson refuses, an integer of more than 64 bits say, is written as psycopg would write it, whatever it has been
    told to do that with (`psycopg.types.json.set_json_dumps`).

    Args:
        value: of lists, dictionaries, texts, finite numbers, booleans and None; of a member of an enumeration orjson
            writes the `value`, where `json` may write another: see `plain`.

    Raises:
        TypeError, ValueError: it is no JSON.
    """
    try:
        return orjson.dumps(value, option=_AS_JSON)
    except orjson.JSONEncodeError:
        return _as_psycopg(value)


def json_bytes_of_metadata(metadata: Any) -> bytes:
    """As `json_bytes`, of an object whose values may be anything: what is not plain is psycopg's to write."""
    return json_bytes(metadata) if _are_plain(metadata.values()) else _as_psycopg(metadata)


def plain(value: Any) -> Any:
    """What `json` writes of a text, a number or None, where its class is below one of these, as an enumeration's is."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    return int.__index__(value) if isinstance(value, int) else float.__float__(value)


def _are_plain(values: Iterable[Any]) -> bool:
    for value in values:
        kind = type(value)
        if kind is dict:
            if not all(type(inner) in _SCALARS for inner in value.values()):  # the parents, of a subgraph's checkpoint
                return False
        elif kind not in _SCALARS:
            return False
    return True


def _as_psycopg(value: Any) -> bytes:
    dumper = psycopg.adapters.get_dumper(Jsonb, PyFormat.TEXT)(Jsonb)
    return bytes(dumper.dump(Jsonb(value)) or b"")
