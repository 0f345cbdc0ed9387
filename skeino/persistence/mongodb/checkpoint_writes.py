"""`CheckpointWrites`: what the saver writes to one of its collections, together where several come at once.

The documents are made by the stock saver itself, which is handed a collection that only keeps what it is asked to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from langgraph.checkpoint.mongodb import MongoDBSaver
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, ConnectionFailure

from skeino.persistence.group_commit import GroupCommit
from skeino.persistence.mongodb.connections import MongoDatabase, translated_errors

Work = Callable[[MongoDBSaver], Any]


class CheckpointWrites:
    """The one asynchronous writer of a process to this collection."""

    def __init__(self, database: MongoDatabase, collection: Collection[dict[str, Any]]) -> None:
        self._database = database
        self._collection = collection
        self._group: GroupCommit[_Write] = GroupCommit(
            self._write_batch, f"MongoDB at {database.place}", patience=database.operation_timeout
        )

    async def write(self, saver: MongoDBSaver, work: Work) -> Any:
        """What `work` results in, once it is durable. A caller that is cancelled loses that alone.

        Args:
            saver: whose serializer is used.
            work: one of the stock saver's writing methods, called on the saver it is given; it may be called again.

        Raises:
            StoreError: as `MongoDatabase.in_thread`.
        """
        with translated_errors(self._database.place):
            return await self._group.write(_Write(saver, work))

    async def close(self) -> None:
        """Take no more writes, and wait until those there are have been answered."""
        await self._group.close()

    async def _write_batch(self, writes: Sequence[_Write]) -> Sequence[Any]:
        work = self._each_alone if len(writes) == 1 else self._together
        return await self._database.in_thread(lambda: work(writes))

    def _together(self, writes: Sequence[_Write]) -> Sequence[Any]:
        answers: list[Any] = [None] * len(writes)
        operations: list[UpdateOne] = []
        positions: list[int] = []
        alone: set[int] = set()
        for position, write in enumerate(writes):
            asked = _Asked()
            try:
                answers[position] = write.work(_Recorder(write.saver, asked))
            except _OtherwiseError:
                alone.add(position)
            except Exception as exc:
                answers[position] = exc
            else:
                operations += asked.operations
                positions += [position] * len(asked.operations)
        try:
            if operations:
                # Operations on one document keep their order in an unordered bulk, too, and none waits for another.
                self._collection.bulk_write(operations, ordered=False)
        except ConnectionFailure:
            raise
        except BulkWriteError as exc:
            details = exc.details or {}
            whole = details.get("writeConcernErrors")
            alone.update(positions if whole else [positions[error["index"]] for error in details["writeErrors"]])
        except Exception:  # by something that one of them has, maybe
            alone.update(positions)
        again = sorted(alone)
        for position, answer in zip(again, self._each_alone([writes[position] for position in again]), strict=True):
            answers[position] = answer
        return answers

    def _each_alone(self, writes: Sequence[_Write]) -> Sequence[Any]:
        """As the stock saver does it; what it says of its document is the write's own answer."""
        answers: list[Any] = []
        for write in writes:
            try:
                answers.append(write.work(write.saver))
            except ConnectionFailure as exc:  # the others need not wait for the same
                return [*answers, *[exc] * (len(writes) - len(answers))]
            except Exception as exc:
                answers.append(exc)
        return answers


class _Write(NamedTuple):
    saver: MongoDBSaver
    work: Work


class _Recorder(MongoDBSaver):
    """The saver, but for its collections."""

    def __init__(self, saver: MongoDBSaver, asked: _Asked) -> None:
        self.__dict__.update(saver.__dict__)
        self.checkpoint_collection = self.writes_collection = cast("Any", asked)


class _Asked:
    """A collection that keeps what it is asked to do, of what the stock saver's writing methods ask for."""

    def __init__(self) -> None:
        self.operations: list[UpdateOne] = []

    def update_one(self, *arguments: Any, **options: Any) -> None:
        self.operations.append(UpdateOne(*arguments, **options))

    def bulk_write(self, operations: Sequence[Any], **options: Any) -> None:
        if not operations or options:
            raise _OtherwiseError
        self.operations += operations

    def __getattr__(self, name: str) -> Any:
        raise _OtherwiseError


class _OtherwiseError(Exception):
    """The saver wants something that is not put into a bulk operation: it does it by itself."""
