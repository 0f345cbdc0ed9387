"""`answer_to()`: what a write results in, as a future: nobody needs a task to wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Errors = Callable[[], AbstractContextManager[None]]


def _as_it_is(result: Any) -> Any:
    return result


def answer_to(
    written: asyncio.Future[Any], *, within: float, errors: Errors, then: Callable[[Any], Any] = _as_it_is
) -> asyncio.Future[Any]:
    """The answer to a write that has been queued. Whoever cancels it loses the answer alone.

    Args:
        written: the future of the write. Where its result is a task, that one goes on with it.
        within: seconds after which nobody waits any longer.
        errors: translates what is raised in it: the driver's errors, and `TimeoutError`.
        then: makes the answer of the result; it may return a task that finds it out.
    """
    waiter = _Waiter(within, errors, then)
    written.add_done_callback(waiter.arrived)
    return waiter.answer


class _Waiter:
    __slots__ = ("_errors", "_then", "_timer", "answer")

    def __init__(self, within: float, errors: Errors, then: Callable[[Any], Any]) -> None:
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Any] = loop.create_future()
        self._errors = errors
        self._then = then
        self._timer = loop.call_later(within, self._give_up)

    def arrived(self, written: asyncio.Future[Any]) -> None:
        """It is written, or the task that has gone on with it is over."""
        if written.cancelled():
            exc: BaseException | None = asyncio.CancelledError()  # with the event loop
        else:
            exc = written.exception()
        if self.answer.done():  # in vain: it is too late, or the caller was cancelled
            self._timer.cancel()
        elif exc is not None:
            self._fail(exc)
        else:
            self._take(written.result())

    def _take(self, result: Any) -> None:
        if not isinstance(result, asyncio.Future):
            then, self._then = self._then, _as_it_is
            try:
                result = then(result)
            except Exception as exc:
                self._fail(exc)
                return
        if isinstance(result, asyncio.Future):
            result.add_done_callback(self.arrived)
        else:
            self._timer.cancel()
            self.answer.set_result(result)

    def _give_up(self) -> None:
        if not self.answer.done():
            self._fail(TimeoutError())

    def _fail(self, exc: BaseException) -> None:
        self._timer.cancel()
        try:
            with self._errors():
                raise exc
        except asyncio.CancelledError:
            self.answer.cancel()
        except Exception as translated:
            self.answer.set_exception(translated)
