"""`CheckpointWrites`: what the saver writes to its two collections, together where several come at once.

The documents are made by the stock saver itself, which is handed collections that only keep what they are asked to do:
upserts, of what is hardly ever there already (`upserts`). What runs write that hold their threads is written in a
transaction, in which the threads' documents are touched, too: so that whoever takes one of them meanwhile either makes
it fail, or comes after it. What others write needs none: there checkpoints and pending writes are written beside each
other, as the stock saver's threads do it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, cast

from langgraph.checkpoint.mongodb import MongoDBSaver
from pymongo import UpdateOne
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, ConnectionFailure, WriteError

from skeino.errors import StoreUnavailableError
from skeino.persistence.group_commit import ThreadCommit
from skeino.persistence.mongodb import upserts
from skeino.persistence.mongodb.connections import MongoDatabase
from skeino.persistence.mongodb.documents import Document
from skeino.persistence.mongodb.failures import translated_errors
from skeino.persistence.mongodb.schema import LANGGRAPHS, THREADS
from skeino.persistence.one_thread import OneThread

Work = Callable[[MongoDBSaver], Any]

CHECKPOINTS: Final = "checkpoints"
PENDING: Final = "pending-writes"
_NAMES: Final = (CHECKPOINTS, PENDING)
_FENCED: Final = "fenced"  # of either collection: two transactions at once would collide at the thread's document


class RefusedError(Exception):
    """The thread's fence is another one now. Nothing was written."""


class CheckpointWrites:
    """The writers of a process to these collections, each with a thread of its own."""

    def __init__(
        self, database: MongoDatabase, checkpoints: Collection[Document], pending_writes: Collection[Document]
    ) -> None:
        self._database = database
        self._collections = (checkpoints, pending_writes)
        self._inserts = all(map(upserts.has_unique, self._collections, LANGGRAPHS.values()))
        self._threads = database.metadata_of(database.blocking_client)[THREADS]
        self._writers = {name: OneThread(f"skeino-mongodb-{name}") for name in (_FENCED, *_NAMES)}
        self._groups: dict[str, ThreadCommit[_Write]] = {
            name: ThreadCommit(
                writer, self._written, f"MongoDB at {database.place}", patience=database.operation_timeout
            )
            for name, writer in self._writers.items()
        }

    async def write(self, of: str, saver: MongoDBSaver, work: Work, held: tuple[str, int] | None) -> Any:
        """What `work` results in, once it is durable. A caller that is cancelled loses that alone.

        Args:
            of: `CHECKPOINTS` or `PENDING`, what is written.
            saver: whose serializer is used.
            work: one of the stock saver's writing methods, called on the saver it is given; it may be called again.
            held: the thread, and the fence that it must have; None writes in any case.

        Raises:
            RefusedError: it has another.
            StoreError: as `MongoDatabase.in_thread`.
        """
        with translated_errors(self._database.place):
            return await self._groups[of if held is None else _FENCED].write(_Write(saver, work, held))

    def write_blocking(self, saver: MongoDBSaver, work: Work, held: tuple[str, int] | None) -> Any:
        """As `write`, by itself."""
        with self._database.blocking_operation():
            [answer] = self._written([_Write(saver, work, held)])
            if isinstance(answer, Exception):
                raise answer
            return answer

    async def settled(self, saver: MongoDBSaver) -> None:
        """Wait for what was asked for before: calls that were cancelled, but whose writes are on their way."""
        nothing = _Write(saver, lambda _: None, None)
        with translated_errors(self._database.place):
            await asyncio.gather(*(group.write(nothing) for group in self._groups.values() if not group.is_idle))

    async def close(self) -> None:
        """Take no more writes, and wait until those there are have been answered."""
        await asyncio.gather(*(group.close() for group in self._groups.values()))
        for writer in self._writers.values():
            writer.end()

    def _written(self, writes: Sequence[_Write]) -> Sequence[Any]:
        answers: list[Any] = [None] * len(writes)
        asked: list[_Asked] = []
        alone: set[int] = set()
        for position, write in enumerate(writes):
            one = _Asked(position, write.held)
            try:
                answers[position] = write.work(_Recorder(write.saver, one))
            except _OtherwiseError:
                alone.add(position)
            except Exception as exc:
                answers[position] = exc
            else:
                asked.append(one)
        try:
            for position in self._together(asked):
                answers[position] = RefusedError()
        except (ConnectionFailure, StoreUnavailableError):
            raise
        except _FailedError as exc:
            alone |= exc.positions
        except Exception:  # by something that one of them has, maybe
            if len(writes) == 1:
                raise
            alone.update(one.position for one in asked)
        again = sorted(alone)
        for position, answer in zip(again, self._each_alone([writes[position] for position in again]), strict=True):
            answers[position] = answer
        return answers

    def _together(self, asked: Sequence[_Asked]) -> set[int]:
        """Write all of them but those that are refused, whose positions it returns."""
        if any(one.held is not None for one in asked):
            if self._database.transactions:
                return self._fenced(asked)
            refused = self._refused(asked, None)
            asked = [one for one in asked if one.position not in refused]
        else:
            refused = set()
        for collection, name in zip(self._collections, _NAMES, strict=True):
            operations = [operation for one in asked for operation in one.of(name)]
            positions = [one.position for one in asked for _ in one.of(name)]
            if failed := upserts.write(collection, operations, insert=self._inserts):
                raise _FailedError({*(positions[index] for index in failed), *_later(asked, name)})
        return refused

    def _fenced(self, asked: Sequence[_Asked]) -> set[int]:
        """As `_together`, in a transaction: all of it, or nothing."""

        def written(session: ClientSession | None, insert: bool) -> set[int]:
            refused = self._refused(asked, session)
            for collection, name in zip(self._collections, _NAMES, strict=True):
                operations = [operation for one in asked if one.position not in refused for operation in one.of(name)]
                upserts.write_within(session, collection, operations, insert=insert)
            return refused

        if self._inserts:
            try:
                return self._database.blocking_transact(lambda session: written(session, insert=True))
            except (WriteError, BulkWriteError):
                pass  # one is there already, most likely
        return self._database.blocking_transact(lambda session: written(session, insert=False))

    def _refused(self, asked: Sequence[_Asked], session: ClientSession | None) -> set[int]:
        """Those whose thread has another fence now. The documents of the others are touched."""
        held = {one.held for one in asked if one.held is not None}
        names = [*{thread_id for thread_id, _ in held}]
        # One update of all of them takes the server two thirds of the time that one for each takes.
        touched = self._threads.update_many(
            {"_id": {"$in": names}, "$expr": {"$in": [["$_id", "$fence"], {"$literal": [*held]}]}},
            {"$inc": {"writes": 1}},
            session=session,
        )
        if touched.matched_count == len(held):
            return set()
        threads = self._threads.find({"_id": {"$in": names}}, {"fence": 1}, session=session)
        fences = {(thread["_id"], thread["fence"]) for thread in threads}
        return {one.position for one in asked if one.held is not None and one.held not in fences}

    def _each_alone(self, writes: Sequence[_Write]) -> Sequence[Any]:
        """What the stock saver, or the server, says of its document is the write's own answer."""
        answers: list[Any] = []
        for write in writes:
            try:
                answers.append(self._one_alone(write))
            except (ConnectionFailure, StoreUnavailableError) as exc:  # the others need not wait for the same
                return [*answers, *[exc] * (len(writes) - len(answers))]
            except Exception as exc:
                answers.append(exc)
        return answers

    def _one_alone(self, write: _Write) -> Any:
        if write.held is not None:
            one = _Asked(0, write.held)
            try:
                answer = write.work(_Recorder(write.saver, one))
            except _OtherwiseError:
                one = _Asked(0, write.held)
                if self._refused([one], None):
                    raise RefusedError from None
            else:
                if self._together([one]):
                    raise RefusedError
                return answer
        return write.work(write.saver)


def _later(asked: Iterable[_Asked], name: str) -> set[int]:
    """The positions of what was not tried, when one of these has failed."""
    return {one.position for one in asked if any(one.of(later) for later in _NAMES[_NAMES.index(name) + 1 :])}


class _Write(NamedTuple):
    saver: MongoDBSaver
    work: Work
    held: tuple[str, int] | None


class _FailedError(Exception):
    """Some have not been written: each may be tried by itself."""

    def __init__(self, positions: set[int]) -> None:
        self.positions = positions


class _Recorder(MongoDBSaver):
    """The saver, but for its collections."""

    def __init__(self, saver: MongoDBSaver, asked: _Asked) -> None:
        self.__dict__.update(saver.__dict__)
        self.checkpoint_collection = cast("Any", _AskedOf(asked.of(CHECKPOINTS)))
        self.writes_collection = cast("Any", _AskedOf(asked.of(PENDING)))


class _Asked:
    """What the stock saver's writing method asks for, of which collection."""

    def __init__(self, position: int, held: tuple[str, int] | None) -> None:
        self.position = position
        self.held = held
        self._operations: dict[str, list[UpdateOne]] = {}

    def of(self, name: str) -> list[UpdateOne]:
        return self._operations.setdefault(name, [])


class _AskedOf:
    """A collection that keeps what it is asked to do."""

    def __init__(self, operations: list[UpdateOne]) -> None:
        self._operations = operations

    def update_one(self, *arguments: Any, **options: Any) -> None:
        self._operations.append(UpdateOne(*arguments, **options))

    def bulk_write(self, operations: Sequence[Any], **options: Any) -> None:
        if not operations or options:
            raise _OtherwiseError
        self._operations += operations

    def __getattr__(self, name: str) -> Any:
        raise _OtherwiseError


class _OtherwiseError(Exception):
    """The saver wants something that is not put into a bulk operation: it does it by itself."""
