"""`MongoDatabase`: the process's clients of one deployment, shared by the checkpointer and the metadata store.

There are two: LangGraph's saver knows PyMongo's blocking client only, so that one works in threads of its own; the
metadata store has an asynchronous client. Either has a pool of at most `pool_max_size` connections.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar

from bson.codec_options import DEFAULT_CODEC_OPTIONS
from pymongo import AsyncMongoClient, MongoClient, ReadPreference
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.client_session import ClientSession
from pymongo.synchronous.database import Database

from skeino.errors import ConfigurationError, StoreError, StoreUnavailableError
from skeino.persistence.cancellation import to_its_end
from skeino.persistence.mongodb import schema
from skeino.persistence.mongodb.clients import (
    CHECKPOINTS_DATABASE,
    METADATA_DATABASE,
    OPTIONS,
    Clients,
    Document,
    client_for_leases,
    clients_of,
)
from skeino.persistence.mongodb.failures import pool_exhausted, translated_errors, unreachable
from skeino.persistence.registry import CheckpointerSpec
from skeino.persistence.versions import SchemaState

T = TypeVar("T")

OLDEST: Final = "6.0"
OLDEST_WIRE: Final = 17
"""The oldest server that has all that is used, and its `maxWireVersion`."""


class MongoDatabase:
    """The open clients. `open_database` makes it."""

    def __init__(
        self,
        clients: Clients,
        *,
        threads: int,
        pool_timeout: float,
        operation_timeout: float,
    ) -> None:
        address = clients.address
        self.client = clients.asynchronous
        self.blocking_client = clients.blocking
        self.place = address.place
        """Hosts, ports and database, for messages."""
        self.checkpoints_name = address.database or CHECKPOINTS_DATABASE
        self.transactions = True
        """Whether the deployment has them: a replica set or a sharded cluster does, a server that stands alone not."""
        self.wire_version = 0
        """The server's `maxWireVersion`, once it is connected."""
        self._metadata_name = address.database or METADATA_DATABASE
        self._clients = clients
        # Whatever the defaults of a client that the application has made. A transaction would have those, too.
        self.concerns: dict[str, Any] = {
            "read_concern": clients.read_concern,
            "write_concern": clients.write_concern,
            "read_preference": ReadPreference.PRIMARY,
        }
        self._as_needed = {"codec_options": DEFAULT_CODEC_OPTIONS, **self.concerns}
        self.operation_timeout = operation_timeout
        self._places = asyncio.Semaphore(clients.places)
        waiting = self.client.options.pool_options.wait_queue_timeout
        self._pool_timeout = pool_timeout if waiting is None else waiting
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="skeino-mongodb")
        self._closed = False

    @property
    def metadata(self) -> AsyncDatabase[Document]:
        """The database of threads and runs."""
        return self.client.get_database(self._metadata_name, **self._as_needed)

    def metadata_of(self, client: MongoClient[Document]) -> Database[Document]:
        """As `metadata`, by another client."""
        return client.get_database(self._metadata_name, **self._as_needed)

    def client_for_leases(self, limit: float) -> tuple[MongoClient[Document], bool]:
        """A blocking client of the same deployment, as `clients.client_for_leases` says."""
        return client_for_leases(self._clients, limit)

    @property
    def checkpoints(self) -> Database[Document]:
        """The database of checkpoints, for the blocking saver."""
        return self.blocking_client.get_database(self.checkpoints_name, **self._as_needed)

    async def aggregate(
        self, collection: AsyncCollection[Document], pipeline: list[Document], **options: Any
    ) -> list[Document]:
        """What an aggregation finds. It is a coroutine in PyMongo, and none in Motor."""
        found: Any = collection.aggregate(pipeline, **options)
        documents: list[Document] = await (await found if inspect.isawaitable(found) else found).to_list()
        return documents

    @asynccontextmanager
    async def operation(self) -> AsyncIterator[None]:
        """Around one operation, which uses one connection at a time: bounded in time, its errors translated.

        It has a place to itself to the end. Without, writes that wait in the server for a transaction's document
        would hold all connections, and the transaction would wait for one of them.

        Not by `pymongo.timeout`, within which an operation is repeated until the time is over: a server that is down
        would not be noticed after `connect_timeout`.

        A cancellation that comes together with the answer is raised here: `asyncio.wait_for` of Python 3.11, which
        PyMongo uses, loses it (https://github.com/python/cpython/issues/86296).
        """
        self._refuse_if_closed()
        task = asyncio.current_task()
        cancelled = 0 if task is None else task.cancelling()
        try:
            async with asyncio.timeout(self._pool_timeout):
                await self._places.acquire()
        except TimeoutError:
            raise pool_exhausted(self.place) from None
        try:
            with translated_errors(self.place):
                async with asyncio.timeout(self.operation_timeout):
                    yield
        finally:
            self._places.release()
        if task is not None and task.cancelling() > cancelled:
            raise asyncio.CancelledError

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
        return await to_its_end(self.attempt(work))

    async def attempt(
        self, work: Callable[[AsyncClientSession | None], Coroutine[Any, Any, T]], times: int | None = None
    ) -> T:
        """As `transact`, for a caller that is not cancelled.

        Args:
            work: what to do.
            times: give up when it has lost so often; by default it goes on until the time for an operation is over.

        Raises:
            ContendedError: it has lost so often. Nothing was written.
        """
        begun = 0
        clock = asyncio.get_running_loop().time
        deadline: float | None = None

        async def once(session: AsyncClientSession) -> T:
            nonlocal begun, deadline
            deadline = deadline or clock() + self.operation_timeout
            if clock() > deadline:  # whatever became of its cancellation: on Python 3.11 `wait_for` may lose one
                raise TimeoutError
            if begun == times:
                raise ContendedError
            begun += 1
            with unreachable(self.place):  # which PyMongo would try again for two minutes
                return await work(session)

        async with self.operation():
            if not self.transactions:
                return await work(None)
            started: Any = self.client.start_session()  # a coroutine in Motor, and none in PyMongo
            async with await started if inspect.isawaitable(started) else started as session:
                done: T = await session.with_transaction(once, **self.concerns)
                return done

    def blocking_transact(self, work: Callable[[ClientSession | None], T]) -> T:
        """As `transact`, in a thread."""

        def attempt(session: ClientSession) -> T:
            with unreachable(self.place):
                return work(session)

        if not self.transactions:
            return work(None)
        with self.blocking_client.start_session() as session:
            return session.with_transaction(attempt, **self.concerns)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run blocking `work` in one of this database's threads; a graph's are not kept waiting by it.

        A caller that is cancelled loses the answer, the work goes on.
        """
        self._refuse_if_closed()
        task = asyncio.current_task()
        cancelled = 0 if task is None else task.cancelling()
        with translated_errors(self.place):
            async with asyncio.timeout(self.operation_timeout):
                try:
                    return await asyncio.get_running_loop().run_in_executor(self._threads, work)
                except asyncio.CancelledError:
                    if task is None or task.cancelling() == cancelled:  # by `close`, for want of a thread
                        self._refuse_if_closed()
                    raise

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"The connection to MongoDB at {self.place} is closed.")

    async def close(self) -> None:
        """Close the clients that are ours, each of which says good-bye to the server, if there is one."""
        self._closed = True
        closing = ThreadPoolExecutor(1)  # the other threads may all be busy
        loop, ours = asyncio.get_running_loop(), self._clients.ours
        try:
            await asyncio.gather(
                *(loop.run_in_executor(closing, one.close) for one in ours if isinstance(one, MongoClient)),
                *(one.close() for one in ours if isinstance(one, AsyncMongoClient)),
            )
        finally:
            closing.shutdown(wait=False)
            self._threads.shutdown(wait=False, cancel_futures=True)


class ContendedError(Exception):
    """A transaction has lost against others as often as it may."""


@asynccontextmanager
async def open_database(spec: CheckpointerSpec) -> AsyncIterator[MongoDatabase]:
    """Connect to the spec's deployment and make the indexes that are missing; options are `OPTIONS`.

    Raises:
        ConfigurationError: the URI is none that MongoDB understands, an option is wrong, or the server too old.
        StoreUnavailableError: the deployment cannot be reached; the message names hosts, ports and database.
        SchemaError: with `setup_schema=False`, collections are missing; or they may not be made.
    """
    async with opened(spec) as (database, options):
        if database.wire_version < OLDEST_WIRE:
            raise ConfigurationError(f"MongoDB at {database.place} is older than {OLDEST}: upgrade the server.")
        async with database.operation():
            prepare = schema.create if options["setup_schema"] else schema.verify
            await prepare(database.metadata, database.client[database.checkpoints_name])
        yield database


async def read_schema(spec: CheckpointerSpec) -> SchemaState:
    """What the spec's database has of the schema; nothing is made.

    Raises:
        ConfigurationError, StoreUnavailableError: as `open_database`.
    """
    async with opened(spec) as (database, _), database.operation():
        return await schema.read_state(database.metadata, database.client[database.checkpoints_name])


@asynccontextmanager
async def opened(spec: CheckpointerSpec) -> AsyncIterator[tuple[MongoDatabase, Document]]:
    """The spec's deployment, connected, its schema not looked at; and the checked options."""
    options = spec.checked_options(**OPTIONS)
    if options["pool_max_size"] < 1:
        raise ConfigurationError("pool_max_size must be at least 1.")
    database = MongoDatabase(
        clients_of(spec, options),
        threads=options["pool_max_size"],
        pool_timeout=options["pool_timeout"],
        operation_timeout=options["operation_timeout"],
    )
    try:
        await _connect(database)
        yield database, options
    finally:
        await database.close()


async def _connect(database: MongoDatabase) -> None:
    """Connect, and see what the deployment has."""
    try:
        async with database.operation():
            hello = await database.client.admin.command("hello")
        if not await database.in_thread(lambda: _is_same(hello, database.blocking_client.admin.command("hello"))):
            raise ConfigurationError("checkpointer_uri and the client of option client are of different deployments.")
    except (StoreError, ConfigurationError) as exc:
        failed = type(exc)(str(exc))
    except RuntimeError as exc:  # PyMongo's own words for it
        if "different event loop" not in str(exc):
            raise
        failed = ConfigurationError("The option client has a client of another event loop: make it where it is used.")
    else:
        database.transactions = "setName" in hello or hello.get("msg") == "isdbgrid"
        database.wire_version = hello["maxWireVersion"]
        return
    raise failed  # without the driver's own error behind it


def _is_same(one: Document, other: Document) -> bool:
    """Whether two answers to "hello" may be of one deployment; of a sharded cluster any two routers are."""
    if "setName" in one or "setName" in other:
        return one.get("setName") == other.get("setName") and bool({*one["hosts"]} & {*other["hosts"]})
    processes = [answer.get("topologyVersion", {}).get("processId") for answer in (one, other)]
    return "isdbgrid" in (one.get("msg"), other.get("msg")) or None in processes or processes[0] == processes[1]
