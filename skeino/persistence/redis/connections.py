"""`RedisDatabase`: the process's one client of a Redis server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    DataError,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redisvl.exceptions import RedisVLError

from skeino.errors import ConfigurationError, InvalidInputError, SchemaError, StoreError, StoreUnavailableError
from skeino.persistence.registry import CheckpointerSpec, beginning_of

NUMBER: Final = (int, float)
OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "setup_schema": (bool, True),
    "pool_max_size": (int, 10),
    "pool_timeout": (NUMBER, 5.0),
    "connect_timeout": (NUMBER, 5.0),
    "operation_timeout": (NUMBER, 30.0),
}
"""`checkpointer_options` of scheme `redis`, with their defaults; times are seconds.

redis-py's own pool has no bound, and its own waits none either.
"""

_MODULES: Final = "the modules Search and JSON, in which LangGraph's saver keeps checkpoints"
_RETRIES: Final = 2  # what the saver sends may be sent again: it sets keys to values


class RedisDatabase:
    """The open client. `open_database` makes it."""

    def __init__(self, client: Redis, place: str, *, setup_schema: bool, operation_timeout: float) -> None:
        self.client = client
        self.place = place
        """Host, port and database, for messages."""
        self.setup_schema = setup_schema
        self._operation_timeout = operation_timeout
        self._closed = False

    @asynccontextmanager
    async def operation(self) -> AsyncIterator[None]:
        """Around one operation: bounded in time, its errors translated.

        Raises:
            StoreUnavailableError, SchemaError, InvalidInputError, StoreError: as `translated_errors`.
        """
        if self._closed:  # the client would connect anew
            raise StoreUnavailableError(f"The connection to Redis at {self.place} is closed.")
        with translated_errors(self.place):
            async with asyncio.timeout(self._operation_timeout):
                yield

    async def close(self) -> None:
        """Close the client and its connections."""
        self._closed = True
        await self.client.aclose()
        await self.client.connection_pool.aclose()


@asynccontextmanager
async def open_database(spec: CheckpointerSpec) -> AsyncIterator[RedisDatabase]:
    """Connect to the spec's server; options are `OPTIONS`.

    Raises:
        ConfigurationError: the URI is none that Redis understands, an option is wrong, or the server lacks modules.
        StoreUnavailableError: the server cannot be reached; the message names host, port and database.
    """
    options = spec.checked_options(**OPTIONS)
    if options["pool_max_size"] < 1:
        raise ConfigurationError("pool_max_size must be at least 1.")
    uri, place = _address_of(spec)
    pool = _pool(uri, options)
    if pool.connection_kwargs.get("db"):
        raise ConfigurationError(
            f"Redis searches in database 0 only, and checkpointer_uri names another ({place}): leave the number out."
        )
    client = Redis(connection_pool=pool)
    database = RedisDatabase(
        client, place, setup_schema=options["setup_schema"], operation_timeout=options["operation_timeout"]
    )
    try:
        await _connect(database)
        yield database
    finally:
        await database.close()


async def _connect(database: RedisDatabase) -> None:
    """Find out whether the server answers, and has what the saver needs."""
    try:
        async with database.operation():
            await database.client.ping()
            await _refuse_without_modules(database)
    except StoreUnavailableError as exc:
        failed = StoreUnavailableError(str(exc))
    else:
        return
    raise failed  # without the driver's own error behind it, which may repeat the user's name


async def _refuse_without_modules(database: RedisDatabase) -> None:
    client: Any = database.client  # redis-py leaves this method without types
    try:
        await client.execute_command("FT._LIST")
        await client.execute_command("JSON.TYPE", "skeino")
    except ResponseError as exc:
        if "unknown command" not in str(exc).lower():
            raise
    else:
        return
    raise ConfigurationError(
        f"The Redis server at {database.place} lacks {_MODULES}: use Redis 8 or Redis Stack, or load both modules."
    )


@contextmanager
def translated_errors(place: str) -> Iterator[None]:
    """Turn errors of redis-py and RedisVL into skeino's, without the server's own text: it may repeat a value."""
    try:
        yield
    except RedisVLError as exc:
        cause = exc.__cause__
        if isinstance(cause, RedisError):
            raise _translated(cause, place) from cause
        raise StoreError(f"Redis at {place} refused the operation ({type(exc).__name__}).") from exc
    except RedisError as exc:
        raise _translated(exc, place) from exc
    except (TimeoutError, OSError) as exc:
        raise StoreUnavailableError(f"Redis at {place} did not answer in time.", maybe_done=True) from exc


def _translated(exc: RedisError, place: str) -> StoreError | InvalidInputError:
    if isinstance(exc, AuthenticationError):
        return StoreUnavailableError(f"Redis at {place} refused the user or the password.")
    if isinstance(exc, MaxConnectionsError) or "No connection available" in str(exc):
        return StoreUnavailableError(
            f"The pool of Redis at {place} had no free connection in time: is pool_max_size too small?"
        )
    if isinstance(exc, BusyLoadingError):
        return StoreUnavailableError(f"Redis at {place} is starting up: try again.")
    if isinstance(exc, RedisTimeoutError):
        return StoreUnavailableError(f"Redis at {place} did not answer in time.", maybe_done=True)
    if isinstance(exc, RedisConnectionError):
        return StoreUnavailableError(f"Redis at {place} cannot be reached: {_problem(exc)}.", maybe_done=True)
    if isinstance(exc, ReadOnlyError):
        return StoreUnavailableError(f"Redis at {place} is a replica now, and read-only: try again.")
    if isinstance(exc, OutOfMemoryError):
        return StoreUnavailableError(f"Redis at {place} has no memory left.")
    if isinstance(exc, NoPermissionError):
        return SchemaError(f"The user may not do this on Redis at {place}: grant it the commands of Search and JSON.")
    if isinstance(exc, DataError):
        return InvalidInputError(f"Redis cannot store one of the values ({type(exc).__name__}).")
    if "no such index" in str(exc).lower() or "unknown index" in str(exc).lower():
        return SchemaError(f"Redis at {place} has lost skeino's indexes: start again with setup_schema=True.")
    return StoreError(f"Redis at {place} refused the operation ({type(exc).__name__}).")


def _problem(exc: RedisError) -> str:
    """What went wrong, in words of our own."""
    text = str(exc)
    for sign, problem in (
        ("refused", "the connection was refused (is the server running there?)"),
        ("Connect call failed", "the connection was refused (is the server running there?)"),
        ("Authentication required", "it wants a password"),
        ("imeout", "it did not answer in time"),
        ("Name or service not known", "the host's name is unknown"),
        ("name resolution", "the host's name is unknown"),
        ("No such file", "there is no such socket (is the server running?)"),
        ("SSL", "the two sides do not agree on TLS"),
    ):
        if sign in text:
            return problem
    return f"the connection broke ({type(exc).__name__})"


def _address_of(spec: CheckpointerSpec) -> tuple[str, str]:
    """The spec's URI, and host, port and database for messages.

    Raises:
        ConfigurationError: it is no Redis URI; the message repeats nothing of it.
    """
    uri = spec.required_uri("'redis://localhost:6379'").strip()
    prefix, separator, _ = uri.partition("://")
    if not separator or prefix not in ("redis", "rediss", "unix"):
        raise ConfigurationError(
            f"The scheme 'redis' needs a Redis URI, but checkpointer_uri {beginning_of(uri)}: "
            "set checkpointer_scheme to match it, or begin it with redis://, rediss:// or unix://."
        )
    place = _place_of(uri)
    if place is not None and "protocol" in parse_qs(urlsplit(uri).query):
        raise ConfigurationError(
            "checkpointer_uri sets protocol, with which redis-py answers searches in another form: leave it out."
        )
    if place is None:
        raise ConfigurationError(
            "checkpointer_uri is no Redis URI: write redis://user@host:6379, and percent-encode special characters of "
            "the password."
        )
    return uri, place


def _place_of(uri: str) -> str | None:
    """None where an '@' or a '/' of the password stands for itself, and cuts the URI there."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:  # its text repeats parts of the URI
        return None
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return None
    if parts.scheme == "unix":
        return parts.path or None
    return None if host is None else f"{host}:{port or 6379}/{parts.path.strip('/') or 0}"


def _pool(uri: str, options: dict[str, Any]) -> BlockingConnectionPool:
    """The pool, not connected yet.

    Raises:
        ConfigurationError: redis-py refuses the URI's options.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            uri,
            max_connections=options["pool_max_size"],
            timeout=options["pool_timeout"],
            socket_connect_timeout=options["connect_timeout"],
            socket_keepalive=True,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), _RETRIES),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
            client_name="skeino",
        )
        # With a time limit of its own redis-py on Python 3.11 swallows cancellations; `operation` has one.
        pool.connection_kwargs["socket_timeout"] = None
        return pool
    except (ValueError, TypeError, RedisError) as exc:
        problem = type(exc).__name__
    raise ConfigurationError(f"redis-py refuses the options of checkpointer_uri ({problem}).")
