"""`LatestReads`: reads of threads' latest checkpoints that are asked for at the same time share a statement.

A graph begins with such a read, and graphs begin together: those whose runs were written in one batch, say. On the
event loop a statement costs more than the row that it brings. What is asked for in one turn of the event loop goes
together at its end, whatever else is being read: so a read waits for those of its turn, and for no others.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from psycopg.rows import DictRow

from skeino.errors import StoreUnavailableError

Place = tuple[str, str]
"""A thread's id, and a checkpoint namespace in it."""

MOST: Final = 16
"""In one statement: their rows are in memory together, and the last is read when the others are."""

_Answer = asyncio.Future[Sequence[DictRow] | None]
"""None: its caller is to read by itself."""


class LatestReads:
    """Reads of one database, by one event loop.

    Args:
        read: the rows of these places, each with its place's `position` from 1 on, as far as there are any.
    """

    def __init__(self, read: Callable[[Sequence[Place]], Awaitable[Sequence[DictRow]]]) -> None:
        self._read = read
        self._asked: list[tuple[Place, _Answer]] = []
        self._reading: dict[asyncio.Task[None], Sequence[tuple[Place, _Answer]]] = {}

    async def rows(self, place: Place, alone: Callable[[], Awaitable[Sequence[DictRow]]]) -> Sequence[DictRow]:
        """The row of the place's latest checkpoint, if there is one.

        Args:
            place: where it is.
            alone: reads it by itself: where nobody else asks, where it is of an old format, and where the server has
                refused to read all of them.

        Raises:
            StoreUnavailableError: there is no connection, or it took too long.
            Exception: whatever `alone` raises.
        """
        loop = asyncio.get_running_loop()
        answer: _Answer = loop.create_future()
        if not self._asked:
            loop.call_soon(self._begin, context=contextvars.Context())
        self._asked.append((place, answer))
        try:
            rows = await answer
        except asyncio.CancelledError:
            self._cancel_what_nobody_waits_for()
            raise
        return await alone() if rows is None else rows

    def _begin(self) -> None:
        asked, self._asked = self._asked, []
        for begin in range(0, len(asked), MOST):
            some = [one for one in asked[begin : begin + MOST] if not one[1].done()]  # whose caller is still there
            if len(some) > 1:
                reading = asyncio.get_running_loop().create_task(self._together(some), name="skeino reader")
                self._reading[reading] = some
                reading.add_done_callback(self._reading.pop)
            else:
                _answer(some, [None] * len(some))

    def _cancel_what_nobody_waits_for(self) -> None:
        """So that the server does not read it, and its connection is free."""
        for reading, asked in self._reading.items():
            if all(answer.done() for _, answer in asked):
                reading.cancel()

    async def _together(self, asked: Sequence[tuple[Place, _Answer]]) -> None:
        answers: list[Sequence[DictRow] | None] = [()] * len(asked)
        try:
            for row in await self._read([place for place, _ in asked]):
                answers[row.pop("position") - 1] = None if _is_old(row) else [row]
        except Exception as exc:
            if isinstance(exc, StoreUnavailableError) and (exc.sqlstate is None or exc.maybe_done):
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(exc)
            else:  # the server has refused one of them, maybe: each is told what its own read fails with
                _answer(asked, [None] * len(asked))
        except BaseException:  # the event loop ends, or nobody waits any more
            for _, answer in asked:
                answer.cancel()
            raise
        else:
            _answer(asked, answers)


def _answer(asked: Sequence[tuple[Place, _Answer]], answers: Sequence[Sequence[DictRow] | None]) -> None:
    for (_, future), answer in zip(asked, answers, strict=True):
        if not future.done():  # its caller may have been cancelled
            future.set_result(answer)


def _is_old(row: DictRow) -> bool:
    """Whether part of it is in its parent's writes."""
    return bool(row["checkpoint"]["v"] < 4 and row["parent_checkpoint_id"])
