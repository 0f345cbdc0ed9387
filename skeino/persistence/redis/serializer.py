"""LangGraph's serializer for Redis, with what it loses kept, and strict mode too."""

from __future__ import annotations

import base64
import math
from dataclasses import is_dataclass
from enum import Enum
from types import NoneType
from typing import Any, Final

from langchain_core.load.serializable import Serializable
from langgraph.checkpoint.redis.jsonplus_redis import JsonPlusRedisSerializer
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Interrupt, Send

PACKED: Final = "__msgpack__"
"""The one key of a dictionary that stands for a value which JSON does not keep: its msgpack, in base64."""

_KEPT: Final = (str, bytes, NoneType, list, set, Interrupt, Send, _DeltaSnapshot, Serializable)
"""What the stock serializer keeps by itself, besides numbers, dictionaries, tuples and dataclasses."""

_MEANT: Final = frozenset({PACKED, "lc", "__bytes__", "__send__", "__interrupt__", "__delta_snapshot__"})


class FaithfulRedisSerializer(JsonPlusRedisSerializer):
    """State is JSON in Redis. This keeps what becomes another value there, and obeys `LANGGRAPH_STRICT_MSGPACK`.

    The stock serializer stores `Decimal("1.10")` so that it is read as 0, a path as an empty one, NaN as null, a time
    as text, and a pydantic model so that it is read as a dictionary; and it takes a dictionary that a user sent for one
    of its own marks, `{"lc": 2, "type": "constructor", "id": […]}` for one, whose module it imports, in strict mode as
    well. Such values are stored as LangGraph's msgpack here, inside the JSON.
    """

    def _preprocess_redis_json(self, obj: Any, **how: Any) -> Any:
        if _is_lost_in_json(obj):
            kind, data = JsonPlusSerializer.dumps_typed(self, obj)
            return {PACKED: [kind, base64.b64encode(data).decode()]}
        return super()._preprocess_redis_json(obj, **how)

    def _revive_if_needed(self, obj: Any) -> Any:
        return self.unpacked(obj) if is_packed(obj) else super()._revive_if_needed(obj)

    def unpacked(self, obj: dict[str, Any]) -> Any:
        """The value that stands packed in the JSON."""
        kind, data = obj[PACKED]
        return JsonPlusSerializer.loads_typed(self, (kind, base64.b64decode(data)))

    def _constructor_class(self, obj: dict[str, Any]) -> type[Any]:
        allowed, name = self._allowed_msgpack_modules, obj.get("id")
        if allowed is not True:
            parts = [str(part) for part in name] if isinstance(name, list) and len(name) > 1 else ["", ""]
            key = (".".join(parts[:-1]), parts[-1])
            if key not in SAFE_MSGPACK_TYPES and key not in (allowed or ()):
                raise ValueError("the class is not listed")  # the stock serializer leaves the dictionary as it is then
        return super()._constructor_class(obj)


def is_packed(obj: Any) -> bool:
    return isinstance(obj, dict) and len(obj) == 1 and isinstance(obj.get(PACKED), list)


def _is_lost_in_json(obj: Any) -> bool:
    if isinstance(obj, Enum | bytearray):
        return True
    if isinstance(obj, float):
        return not math.isfinite(obj)
    if isinstance(obj, int):
        return not isinstance(obj, bool) and not -(2**63) <= obj < 2**64
    if isinstance(obj, dict):
        return any(not isinstance(key, str) or key in _MEANT for key in obj)
    if isinstance(obj, set):  # of members that JSON gives back as lists, say
        return not all(isinstance(member, str | int | NoneType) for member in obj)
    if isinstance(obj, tuple):
        return hasattr(type(obj), "_fields") and not isinstance(obj, _DeltaSnapshot)
    return not isinstance(obj, _KEPT) and not is_dataclass(obj)
