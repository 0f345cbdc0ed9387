"""`LatestReads`: reads of threads' latest checkpoints that are asked for at the same time are made together.

A graph begins with such a read, and graphs begin together: those whose runs were written in one batch, say. To send a
statement, or to go to a thread and back, costs the event loop more than the row that it brings. What is asked for in
one turn of the event loop goes together at its end, whatever else is being read: so a read waits for those of its turn,
and for no others.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from skeino.errors import StoreUnavailableError
from skeino.persistence.answers import fail

Place = TypeVar("Place")
Row = TypeVar("Row")

MOST: Final = 16
"""Read together: their rows are in memory together, and the last is read when the others are."""


class LatestReads(Generic[Place, Row]):
    """Reads of one database, by one event loop.

    Args:
        read: for each of these places its row, if there is one; None, where it is to be read by itself.
    """

    def __init__(self, read: Callable[[Sequence[Place]], Awaitable[Sequence[Sequence[Row] | None]]]) -> None:
        self._read = read
        self._asked: list[tuple[Place, asyncio.Future[Sequence[Row] | None]]] = []
        self._reading: dict[asyncio.Task[None], Sequence[tuple[Place, asyncio.Future[Any]]]] = {}

    async def rows(self, place: Place, alone: Callable[[], Awaitable[Sequence[Row]]]) -> Sequence[Row]:
        """The row of the place's latest checkpoint, if there is one.

        Args:
            place: where it is.
            alone: reads it by itself: where nobody else asks, where that was the answer, and where the database has
                refused to read all of them.

        Raises:
            StoreUnavailableError: there is no connection, or it took too long.
            Exception: whatever `alone` raises.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[Row] | None] = loop.create_future()
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
        """So that the database does not read it, and its connection is free."""
        for reading, asked in self._reading.items():
            if all(answer.done() for _, answer in asked):
                reading.cancel()

    async def _together(self, asked: Sequence[tuple[Place, asyncio.Future[Sequence[Row] | None]]]) -> None:
        try:
            answers = await self._read([place for place, _ in asked])
        except Exception as exc:
            if isinstance(exc, StoreUnavailableError) and (exc.sqlstate is None or exc.maybe_done):
                for _, answer in asked:
                    if not answer.done():
                        fail(answer, exc)
            else:  # the database has refused one of them, maybe: each is told what its own read fails with
                _answer(asked, [None] * len(asked))
        except BaseException:  # the event loop ends, or nobody waits any more
            for _, answer in asked:
                answer.cancel()
            raise
        else:
            _answer(asked, answers)


def _answer(
    asked: Sequence[tuple[Place, asyncio.Future[Sequence[Row] | None]]], answers: Sequence[Sequence[Row] | None]
) -> None:
    for (_, future), answer in zip(asked, answers, strict=True):
        if not future.done():  # its caller may have been cancelled
            future.set_result(answer)
