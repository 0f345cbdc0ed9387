"""JSON for a `jsonb`, which keeps the values and not how they were spelt: so the fastest writer of it will do."""

from __future__ import annotations

from typing import Any, Final

import orjson
import psycopg
from psycopg.adapt import PyFormat
from psycopg.types.json import Jsonb

_AS_JSON: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
"""What Python's own `json` does not know, orjson shall not know either."""


def json_of(value: Any) -> bytes:
    """The value's JSON, in a fraction of the time that `json` takes.

    What orjson refuses, an integer of more than 64 bits say, is written as psycopg would write it, whatever it has been
    told to do that with (`psycopg.types.json.set_json_dumps`).

    Raises:
        TypeError: it is no JSON.
    """
    try:
        return orjson.dumps(value, option=_AS_JSON)
    except orjson.JSONEncodeError:
        dumper = psycopg.adapters.get_dumper(Jsonb, PyFormat.TEXT)(Jsonb)
        return bytes(dumper.dump(Jsonb(value)) or b"")
