"""`MongoDatabase`: the process's clients of one deployment, shared by the checkpointer and the metadata store.

There are two: LangGraph's saver knows PyMongo's blocking client only, so that one works in threads of its own; the
metadata store has PyMongo's asynchronous client. Either has a pool of at most `pool_max_size` connections.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from bson.errors import BSONError
from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    ConnectionFailure,
    DocumentTooLarge,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)
from pymongo.uri_parser import parse_uri

from skeino.errors import ConfigurationError, InvalidInputError, SchemaError, StoreError, StoreUnavailableError
from skeino.persistence.cancellation import to_its_end
from skeino.persistence.mongodb import schema
from skeino.persistence.registry import CheckpointerSpec

T = TypeVar("T")
Document = dict[str, Any]

NUMBER: Final = (int, float)
OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "setup_schema": (bool, True),
    "pool_max_size": (int, 10),
    "pool_timeout": (NUMBER, 5.0),
    "connect_timeout": (NUMBER, 5.0),
    "operation_timeout": (NUMBER, 30.0),
}
"""`checkpointer_options` of scheme `mongodb`, with their defaults; times are seconds.

PyMongo's own waits are 20 and 30 seconds, or unbounded.
"""

CHECKPOINTS_DATABASE: Final = "checkpointing_db"  # where LangGraph's saver keeps them by default
METADATA_DATABASE: Final = "skeino"

_AUTHENTICATION_FAILED: Final = (18, 8000)
_UNAUTHORIZED: Final = 13
_TRANSIENT: Final = (6, 7, 24, 46, 89, 91, 112, 134, 189, 251, 262, 9001, 10107, 11600, 11602, 13435, 13436)
_TOO_LARGE: Final = (10334, 17280, 17419, 17420)


class MongoDatabase:
    """The open clients. `open_database` makes it."""

    def __init__(
        self,
        client: AsyncMongoClient[Document],
        blocking_client: MongoClient[Document],
        address: Address,
        *,
        threads: int,
        operation_timeout: float,
        transactions: bool,
    ) -> None:
        self.client = client
        self.blocking_client = blocking_client
        self.place = address.place
        """Hosts, ports and database, for messages."""
        self.checkpoints_name = address.database or CHECKPOINTS_DATABASE
        self.transactions = transactions
        """Whether the deployment has them: a replica set or a sharded cluster does, a server that stands alone not."""
        self._metadata_name = address.database or METADATA_DATABASE
        self._operation_timeout = operation_timeout
        pool = client.options.pool_options
        self._places = asyncio.Semaphore(int(pool.max_pool_size) if math.isfinite(pool.max_pool_size) else threads)
        self._pool_timeout = pool.wait_queue_timeout
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="skeino-mongodb")
        self._closed = False

    @property
    def metadata(self) -> AsyncDatabase[Document]:
        """The database of threads and runs."""
        return self.client[self._metadata_name]

    @asynccontextmanager
    async def operation(self) -> AsyncIterator[None]:
        """Around one operation, which uses one connection at a time: bounded in time, its errors translated.

        It has a place to itself to the end. Without, writes that wait in the server for a transaction's document
        would hold all connections, and the transaction would wait for one of them.

        Not by `pymongo.timeout`, within which an operation is repeated until the time is over: a server that is down
        would not be noticed after `connect_timeout`.
        """
        self._refuse_if_closed()
        try:
            async with asyncio.timeout(self._pool_timeout):
                await self._places.acquire()
        except TimeoutError:
            raise _pool_exhausted(self.place) from None
        try:
            with translated_errors(self.place):
                async with asyncio.timeout(self._operation_timeout):
                    yield
        finally:
            self._places.release()

    @contextmanager
    def blocking_operation(self) -> Iterator[None]:
        """As `operation`, in a thread: bounded by the client's own time limits."""
        self._refuse_if_closed()
        with translated_errors(self.place):
            yield

    async def transact(self, work: Callable[[AsyncClientSession | None], Coroutine[Any, Any, T]]) -> T:
        """Run `work` in one transaction, again if it loses against another; durable when this returns.

        Where the deployment has no transactions the session is None: `work` then takes the order of steps that is
        safe without. A caller that is cancelled waits for the end, so that nothing is left half done.
        """
        return await to_its_end(self._transact(work))

    async def _transact(self, work: Callable[[AsyncClientSession | None], Coroutine[Any, Any, T]]) -> T:
        async def attempt(session: AsyncClientSession) -> T:
            with _unreachable(self.place):  # which PyMongo would try again for two minutes
                return await work(session)

        async with self.operation():
            if not self.transactions:
                return await work(None)
            async with self.client.start_session() as session:
                return await session.with_transaction(attempt)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run blocking `work` in one of this database's threads; a graph's are not kept waiting by it.

        A caller that is cancelled loses the answer, the work goes on.
        """
        self._refuse_if_closed()
        with translated_errors(self.place):
            async with asyncio.timeout(self._operation_timeout):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"The connection to MongoDB at {self.place} is closed.")

    async def close(self) -> None:
        """Close both clients, each of which says good-bye to the server, if there is one."""
        self._closed = True
        closing = ThreadPoolExecutor(1)  # the other threads may all be busy
        try:
            said = asyncio.get_running_loop().run_in_executor(closing, self.blocking_client.close)
            await asyncio.gather(said, self.client.close())
        finally:
            closing.shutdown(wait=False)
            self._threads.shutdown(wait=False, cancel_futures=True)


@asynccontextmanager
async def open_database(spec: CheckpointerSpec) -> AsyncIterator[MongoDatabase]:
    """Connect to the spec's deployment and make the indexes that are missing; options are `OPTIONS`.

    Raises:
        ConfigurationError: the URI is none that MongoDB understands, or an option is wrong.
        StoreUnavailableError: the deployment cannot be reached; the message names hosts, ports and database.
        SchemaError: with `setup_schema=False`, collections are missing; or they may not be made.
    """
    options = spec.checked_options(**OPTIONS)
    if options["pool_max_size"] < 1:
        raise ConfigurationError("pool_max_size must be at least 1.")
    address = address_of(spec)
    parameters = _parameters(options, address)
    client, blocking_client = _clients(address, parameters)
    database = MongoDatabase(
        client,
        blocking_client,
        address,
        threads=options["pool_max_size"],
        operation_timeout=options["operation_timeout"],
        transactions=True,
    )
    try:
        database.transactions = await _connected(database)
        async with database.operation():
            prepare = schema.create if options["setup_schema"] else schema.verify
            await prepare(database.metadata, client[database.checkpoints_name])
        yield database
    finally:
        await database.close()


@contextmanager
def translated_errors(place: str) -> Iterator[None]:
    """Turn PyMongo's errors into skeino's. The server's own text may repeat a document: it is not repeated."""
    try:
        with _unreachable(place):
            yield
    except WaitQueueTimeoutError as exc:
        raise _pool_exhausted(place) from exc
    except TimeoutError as exc:
        raise StoreUnavailableError(f"MongoDB at {place} did not answer in time.", maybe_done=True) from exc
    except InvalidOperation as exc:
        if "after close" in str(exc):
            raise StoreUnavailableError(f"The connection to MongoDB at {place} is closed.") from exc
        raise StoreError(f"MongoDB at {place} refused the operation ({_code(exc)}).") from exc
    except DocumentTooLarge:
        raise StoreError(f"MongoDB at {place} stores no document of more than 16 MiB.") from None
    except BSONError as exc:
        raise InvalidInputError(f"MongoDB cannot store one of the values ({_code(exc)}).") from None
    except PyMongoError as exc:
        error = _translated(exc, place)
        raise error from exc if isinstance(error, StoreUnavailableError) else None  # a refusal may repeat a document


def _pool_exhausted(place: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"The pool of MongoDB at {place} had no free connection in time: is pool_max_size too small?"
    )


@contextmanager
def _unreachable(place: str) -> Iterator[None]:
    try:
        yield
    except ServerSelectionTimeoutError as exc:
        raise StoreUnavailableError(f"MongoDB at {place} cannot be reached: {_problem(exc)}.") from exc


def _translated(exc: PyMongoError, place: str) -> StoreError:
    if exc.timeout:
        return StoreUnavailableError(f"MongoDB at {place} did not answer in time.", maybe_done=True)
    if isinstance(exc, OperationFailure):
        if exc.code in _AUTHENTICATION_FAILED:
            return StoreUnavailableError(f"MongoDB at {place} refused the user or the password.")
        if exc.code == _UNAUTHORIZED:
            return SchemaError(
                f"The user may not do this on MongoDB at {place} ({_code(exc)}): grant readWrite on the database."
            )
        if exc.code in _TOO_LARGE:
            return StoreError(f"MongoDB at {place} stores no document of more than 16 MiB.")
        if exc.code in _TRANSIENT:
            return StoreUnavailableError(f"MongoDB at {place} failed ({_code(exc)}): try again.", maybe_done=True)
    transient = ("TransientTransactionError", "UnknownTransactionCommitResult", "RetryableWriteError")
    if isinstance(exc, ConnectionFailure) or any(exc.has_error_label(label) for label in transient):
        return StoreUnavailableError(f"MongoDB at {place} failed ({_code(exc)}): try again.", maybe_done=True)
    return StoreError(f"MongoDB at {place} refused the operation ({_code(exc)}).")


@dataclass(frozen=True, slots=True)
class Address:
    """A checked URI."""

    uri: str
    place: str
    database: str | None
    given: frozenset[str]
    """The names of the URI's options, in lower case."""

    def __repr__(self) -> str:
        return f"Address({self.place!r})"


def address_of(spec: CheckpointerSpec) -> Address:
    """The spec's URI, checked without a look-up in the network.

    Raises:
        ConfigurationError: it is no MongoDB URI; the message repeats nothing of it.
    """
    uri = spec.required_uri("'mongodb://localhost:27017/mydb'").strip()
    prefix, separator, rest = uri.partition("://")
    if not separator:
        raise ConfigurationError("checkpointer_uri is no MongoDB URI: write mongodb://user@host:27017/database.")
    if prefix not in ("mongodb", "mongodb+srv"):
        begins = f"begins with {prefix!r}" if prefix.isalnum() and len(prefix) < 20 else "is none"
        raise ConfigurationError(
            f"The scheme 'mongodb' needs a MongoDB URI, but checkpointer_uri {begins}: "
            "set checkpointer_scheme to match it, or begin it with mongodb://."
        )
    if prefix == "mongodb+srv":  # of a look-up in the DNS no check is made here: PyMongo does it when it connects
        before, question, query = rest.partition("?")
        rest = before + question + "&".join(one for one in query.split("&") if not one.lower().startswith("srv"))
    parsed = _parsed(f"mongodb://{rest}")
    # An '@' or a '/' of the password that stands for itself cuts the URI there: then the rest of the password is in
    # what would be the database's name or an option's.
    if (
        parsed is None or "@" in rest.partition("/")[2]
    ):  # the parser's error repeats parts of the URI: ours is raised outside, without a reference
        raise ConfigurationError(
            "checkpointer_uri is no MongoDB URI: write mongodb://user@host:27017/database, percent-encode special "
            "characters of the password, and check the options after the '?'."
        )
    if parsed["collection"]:
        raise ConfigurationError("checkpointer_uri names a collection: a database's name has no dot.")
    given = {name.lower(): value for name, value in parsed["options"].items()}
    if given.get("w") == 0:
        raise ConfigurationError("checkpointer_uri has w=0, with which nothing is ever known to be stored: remove it.")
    nodes = [host if port is None or prefix.endswith("srv") else f"{host}:{port}" for host, port in parsed["nodelist"]]
    place = f"{','.join(nodes)}/{parsed['database'] or METADATA_DATABASE}"
    return Address(uri, place, parsed["database"], frozenset(given))


def _parsed(uri: str) -> Document | None:
    try:
        return parse_uri(uri)
    except (PyMongoError, ValueError, TypeError, OSError):
        return None


def _parameters(options: Document, address: Address) -> Document:
    """What both clients are told besides the URI; what the URI says itself wins, but for where to read."""
    parameters = {
        "appname": "skeino",
        "maxPoolSize": options["pool_max_size"],
        "waitQueueTimeoutMS": round(1000 * options["pool_timeout"]),
        "socketTimeoutMS": round(1000 * options["operation_timeout"]),  # what a thread waits, whoever gave up before
        "connectTimeoutMS": round(1000 * options["connect_timeout"]),
        "serverSelectionTimeoutMS": round(1000 * options["connect_timeout"]),
        "w": "majority",  # what was acknowledged survives a change of the primary
        "journal": True,  # and a crash of a server that stands alone
    }
    return {name: value for name, value in parameters.items() if name.lower() not in address.given} | {
        "readPreference": "primary",  # a graph that reads a lagging copy loses what was said last
    }


def _clients(address: Address, parameters: Document) -> tuple[AsyncMongoClient[Document], MongoClient[Document]]:
    """Both clients, not connected yet.

    Raises:
        ConfigurationError: PyMongo refuses the URI's options, taken together.
    """
    try:
        return (
            AsyncMongoClient(address.uri, connect=False, **parameters),
            MongoClient(address.uri, connect=False, **parameters),
        )
    except (PyMongoError, ValueError, TypeError, OSError) as exc:
        problem = type(exc).__name__
    raise ConfigurationError(
        f"PyMongo refuses the options of checkpointer_uri ({problem}): do they fit together, and do the files exist?"
    )


async def _connected(database: MongoDatabase) -> bool:
    """Connect, and say whether the deployment has transactions."""
    try:
        async with database.operation():
            hello = await database.client.admin.command("hello")
    except (StoreError, ConfigurationError) as exc:
        failed = type(exc)(str(exc))
    else:
        return "setName" in hello or hello.get("msg") == "isdbgrid"
    raise failed  # without the driver's own error behind it


def _code(exc: Exception) -> str:
    code = getattr(exc, "code", None)
    return type(exc).__name__ if code is None else f"{type(exc).__name__}, {code}"


def _problem(exc: PyMongoError) -> str:
    """Why there was no server, in words of our own."""
    text = str(exc)
    for sign, problem in (
        ("Connect call failed", "the connection was refused (is the server running there?)"),  # asyncio's words
        ("refused", "the connection was refused (is the server running there?)"),
        ("uthentication failed", "it refused the user or the password"),
        ("No replica set members match", "there is no primary now"),
        ("Name or service not known", "the host's name is unknown"),
        ("name resolution", "the host's name is unknown"),
        ("DNS", "the host's name is unknown"),
        ("SSL", "the two sides do not agree on TLS"),
        ("not a member of replica set", "it is no member of the replica set that the URI names"),
        ("timed out", "it did not answer in time"),
    ):
        if sign in text:
            return problem
    return f"no server was found in time ({_code(exc)})"
