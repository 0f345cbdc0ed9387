"""The scheme `redis`: checkpoints on one Redis server. It has no metadata store, so it wants
`allow_ephemeral_metadata=True`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from skeino.persistence.redis.connections import RedisDatabase, open_database
from skeino.persistence.redis.saver import StampedRedisSaver
from skeino.persistence.registry import CheckpointerSpec

__all__ = ["RedisDatabase", "StampedRedisSaver", "open_saver"]


@asynccontextmanager
async def open_saver(spec: CheckpointerSpec) -> AsyncIterator[StampedRedisSaver]:
    """The checkpointer of scheme `redis`; its options are those of `open_database`."""
    async with open_database(spec) as database:
        saver = StampedRedisSaver(database)
        async with database.operation():
            await saver.asetup()
        yield saver
