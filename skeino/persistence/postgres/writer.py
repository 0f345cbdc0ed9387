"""`Writer`: writes that arrive while others are being written go in one statement of their kind.

Each statement is a transaction of its own. A statement that fails leaves nothing behind, so its members are then
written one by one, each with its own answer: so one bad row fails nobody else, and a row that another session holds
locked keeps nobody else waiting. All of them may be run twice: a statement whose connection was lost is run again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from psycopg.rows import DictRow

from skeino.errors import SchemaError, StoreError, StoreUnavailableError
from skeino.persistence.group_commit import TaskCommit
from skeino.persistence.postgres.batches import NOTHING, Kind, Values
from skeino.persistence.postgres.session import PATIENCE
from skeino.persistence.repeating import Attempts

T = TypeVar("T")
Rows = list[DictRow]
Fetch = Callable[[str, Values], Awaitable[Rows]]

MAX_BYTES: Final = 16 * 2**20
"""In one statement, as its writes estimate themselves: PostgreSQL takes no message of more than 1 GB."""

LARGE: Final = 2**18
"""Bytes from which on a write goes by itself, beside others: it takes as long as it takes to move them."""

HALVES: Final = 32
"""Measured with 128 at once: half as many again per second as in whole batches; with 32 at once, no more."""

_ATTEMPTS: Final = 20
_LOST: Final = ("40P01", "23503")  # deadlock detected; foreign key violation: the thread went away meanwhile
_COLLIDED: Final = ("40P01", "40001")  # deadlock detected; serialisation failure
_MAY_BE_ONE: Final = ("55P03", "57014", "54000")  # no lock in time; statement_timeout; too large
_READ_ONLY: Final = "25006"  # a server that is not the primary any more: the next connection may find the new one


class Writer:
    """Writes of one database, in the order in which they came.

    Args:
        fetch: runs one statement in a transaction of its own, and returns its rows.
        fetch_together: the same, one at a time, in a session where statements are planned once.
        has_patience: whether that session waits for locks no longer than `PATIENCE`, even where a statement does not
            say so.
        place: names the database, for messages.
        operation_timeout: seconds that a write may take, its wait for the others included.
        patience: seconds in which a statement is run again whose connection was lost.
    """

    def __init__(
        self,
        fetch: Fetch,
        fetch_together: Fetch,
        has_patience: Callable[[], bool],
        place: str,
        *,
        operation_timeout: float,
        patience: float,
    ) -> None:
        self._fetch = fetch
        self._fetch_together = fetch_together
        self._has_patience = has_patience
        self._place = place
        self._operation_timeout = operation_timeout
        self._patience = patience
        self._group: TaskCommit[_Write] = TaskCommit(
            self._write_batch, f"PostgreSQL at {place}", patience=operation_timeout, halves=HALVES
        )
        self._alone: dict[Hashable, set[asyncio.Task[Rows]]] = {}

    async def write(self, kind: Kind, values: Values, key: Hashable, *, thread: Hashable = None, size: int = 0) -> Rows:
        """As `enqueue`, once it is written."""
        return await self.enqueue(kind, values, key, thread=thread, size=size)

    def enqueue(
        self, kind: Kind, values: Values, key: Hashable, *, thread: Hashable = None, size: int = 0
    ) -> asyncio.Future[Rows]:
        """The rows that the write results in, once it is committed; it is in its place when this returns.

        A caller that is cancelled loses the answer alone.

        Args:
            kind: the statements.
            values: their parameters; nobody changes them any more.
            key: writes with the same key are written one after the other.
            thread: where it is known. While a write on it waits for another session, the next on it go by themselves.
            size: about how many bytes the values have, where that may be many.

        Raises:
            StoreUnavailableError, InvalidInputError, SchemaError, StoreError: as `translated_errors`.
        """
        keys = (key,) if thread in (None, key) else (key, thread)
        write = _Write(kind, values, keys, size, asyncio.get_running_loop().time() + self._operation_timeout)
        return self._group.enqueue(write)

    async def settled(self, thread: Hashable) -> None:
        """Wait until what was asked for before has been done; what is held up only if it is on this thread."""
        if self._alone or not self._group.is_idle:
            await self.write(NOTHING, {}, thread)

    async def close(self) -> None:
        """Take no more writes, and wait until those there are have been answered."""
        await self._group.close()
        while self._alone:
            await asyncio.wait(set().union(*self._alone.values()))

    async def _write_batch(self, writes: Sequence[_Write]) -> Sequence[Any]:
        """An answer for each: its rows, its exception, or the task that goes on to write it."""
        answers: dict[int, Any] = {}
        for kind, members in _statements(writes):
            written = await self._write_some(kind, [writes[index] for index in members])
            for index, answer in zip(members, written, strict=True):
                answers[index] = answer
                self._group.answer(index, answer)
            if away := next((answer for answer in written if _is_away(answer)), None):
                return [answers.get(index, away) for index in range(len(writes))]  # they would wait as long in vain
        return [answers[index] for index in range(len(writes))]

    async def _write_some(self, kind: Kind, writes: Sequence[_Write]) -> Sequence[Any]:
        if kind.many is None:
            return [await self._write_one(write) for write in writes]
        alone = {
            write.keys[0]: self._write_alone(write)
            for write in writes
            if write.size >= LARGE or self._is_held_up(write)
        }
        free = [write for write in writes if write.keys[0] not in alone]
        answers = {**alone, **(await self._write_many(kind, free) if free else {})}
        return [answers[write.keys[0]] for write in writes]

    async def _write_many(self, kind: Kind, writes: Sequence[_Write]) -> dict[Hashable, Any]:
        """The answers by key."""
        assert kind.many is not None
        attempts = Attempts(self._patience)
        for _ in range(_ATTEMPTS):
            try:
                if len(writes) == 1 and kind.one is not None and self._has_patience():
                    return {writes[0].keys[0]: await self._fetch_together(kind.one, kind.of_one(writes[0].values))}
                values = kind.arrays([write.values for write in writes])
                values["patience"] = f"{round(1000 * PATIENCE)}ms"
                rows = await self._fetch_together(kind.many, values)
            except (StoreUnavailableError, SchemaError) as exc:
                if exc.sqlstate in _MAY_BE_ONE:
                    break
                if exc.sqlstate not in _COLLIDED and not await _again(attempts, exc):
                    return {write.keys[0]: exc for write in writes}
            except Exception:  # one of them is bad: written alone, it gets its own error
                break
            else:
                found: dict[Hashable, Any] = {
                    writes[row["position"] - 1].keys[0] if "position" in row else row["run_id"]: [row] for row in rows
                }
                return {write.keys[0]: found.get(write.keys[0], []) for write in writes}
        return {write.keys[0]: self._write_alone(write) for write in writes}

    async def _write_one(self, write: _Write) -> Any:
        """Its answer; if another session keeps it waiting, the task that does."""
        held_up = self._is_held_up(write)
        task = self._write_alone(write)
        if not held_up:
            await asyncio.wait([task], timeout=PATIENCE)
        return (task.exception() or task.result()) if task.done() else task

    def _is_held_up(self, write: _Write) -> bool:
        return any(key in self._alone for key in write.keys)

    def _write_alone(self, write: _Write) -> asyncio.Task[Rows]:
        """Write it by itself, after what has its keys; whether its caller is still there or not."""
        before = tuple(self._alone.get(write.keys[0], ()))
        task = asyncio.get_running_loop().create_task(self._rows_of_one(write, before), name="skeino writer")
        for key in write.keys:
            self._alone.setdefault(key, set()).add(task)
        task.add_done_callback(lambda _: self._forget(write, task))
        return task

    async def _rows_of_one(self, write: _Write, before: Sequence[asyncio.Task[Rows]]) -> Rows:
        if before:
            await asyncio.wait(before, timeout=write.deadline - asyncio.get_running_loop().time())
            if not all(task.done() for task in before):
                raise StoreUnavailableError(f"PostgreSQL at {self._place} did not answer in time.")
        kind = write.kind
        if kind.one is not None:
            statement, values = kind.one, kind.of_one(write.values)
        elif kind.many is not None:
            statement, values = kind.many, {**kind.arrays([write.values]), "patience": None}
        else:
            return []
        attempts = Attempts(self._patience)
        while True:
            try:
                return await repeated_if_undone(lambda: self._fetch(statement, values))
            except StoreUnavailableError as exc:
                if not await _again(attempts, exc):
                    raise

    def _forget(self, write: _Write, task: asyncio.Task[Rows]) -> None:
        for key in write.keys:
            self._alone[key].discard(task)
            if not self._alone[key]:
                del self._alone[key]
        if not task.cancelled():
            task.exception()  # its caller may be gone


class _Write(NamedTuple):
    kind: Kind
    values: Values
    keys: tuple[Hashable, ...]
    size: int
    deadline: float
    """By the event loop's clock."""


def _is_away(answer: Any) -> bool:
    """Whether it says that the server cannot be reached, or is too slow."""
    return isinstance(answer, StoreUnavailableError) and (answer.sqlstate in (None, _READ_ONLY) or answer.maybe_done)


async def _again(attempts: Attempts, exc: StoreError) -> bool:
    """Whether to run the statement again: its connection was lost, or leads to a server that has become a standby."""
    return isinstance(exc, StoreUnavailableError) and await attempts.another(exc, undone=exc.sqlstate == _READ_ONLY)


def _statements(writes: Sequence[_Write]) -> Iterator[tuple[Kind, list[int]]]:
    """The kinds to write one after the other, each with its writes, by their index.

    No statement has a key twice, and what has the same key keeps its order. A kind that is not written with others
    comes after what came before it, and before what came after. Otherwise ends come last.
    """
    rounds: Counter[Hashable] = Counter()
    begin = 0
    found: dict[tuple[int, Kind], list[int]] = {}
    for index, write in enumerate(writes):
        if write.kind.many is None:
            begin = max((number for number, _ in found), default=-1) + 1
            number, begin = begin, begin + 1
        else:
            number = max(begin, rounds[write.keys[0]])
            rounds[write.keys[0]] = number + 1
        found.setdefault((number, write.kind), []).append(index)
    for (_, kind), members in sorted(found.items(), key=lambda item: (item[0][0], item[0][1].goes_last)):
        yield from ((kind, part) for part in _bounded(writes, members))


def _bounded(writes: Sequence[_Write], members: list[int]) -> Iterator[list[int]]:
    part: list[int] = []
    size = 0
    for index in members:
        size += writes[index].size
        if part and size > MAX_BYTES:
            yield part
            part, size = [], writes[index].size
        part.append(index)
    yield part


async def repeated_if_undone(operation: Callable[[], Awaitable[T]]) -> T:
    """Repeat an operation that lost against a concurrent one, and that the database has undone as a whole."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return await operation()
        except StoreError as exc:
            if exc.sqlstate not in _LOST:
                raise
    return await operation()
