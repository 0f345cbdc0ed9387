"""LangGraph's serializer for Redis, with strict mode kept."""

from __future__ import annotations

from typing import Any

from langgraph.checkpoint.redis.jsonplus_redis import JsonPlusRedisSerializer
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES


class StrictRedisSerializer(JsonPlusRedisSerializer):
    """Under `LANGGRAPH_STRICT_MSGPACK`, only listed classes are imported and built.

    State is JSON in Redis, and a dictionary in it may name a class: `{"lc": 2, "type": "constructor", "id": […]}`. The
    stock serializer imports the module of any such name, in strict mode as well, and a user's message may hold one.
    """

    def _constructor_class(self, obj: dict[str, Any]) -> type[Any]:
        allowed, name = self._allowed_msgpack_modules, obj.get("id")
        if allowed is not True:
            parts = [str(part) for part in name] if isinstance(name, list) and len(name) > 1 else ["", ""]
            key = (".".join(parts[:-1]), parts[-1])
            if key not in SAFE_MSGPACK_TYPES and key not in (allowed or ()):
                raise ValueError("the class is not listed")  # the stock serializer leaves the dictionary as it is then
        return super()._constructor_class(obj)
