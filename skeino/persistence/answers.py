"""`answer_to()`: what a write results in, as a future: nobody needs a task to wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
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
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    timer = answer.get_loop().call_later(within, _give_up, answer, errors)
    written.add_done_callback(partial(_pass_on, answer, timer, errors, then))
    return answer


def _pass_on(
    answer: asyncio.Future[Any],
    timer: asyncio.TimerHandle,
    errors: Errors,
    then: Callable[[Any], Any],
    written: asyncio.Future[Any],
) -> None:
    exc = None if written.cancelled() else written.exception()
    if answer.done():  # too late, or the caller was cancelled
        timer.cancel()
        return
    if written.cancelled():  # with the event loop
        timer.cancel()
        answer.cancel()
        return
    if exc is not None:
        timer.cancel()
        _fail(answer, exc, errors)
        return
    result = written.result()
    if not isinstance(result, asyncio.Future):
        result, then = then(result), _as_it_is
    if isinstance(result, asyncio.Future):
        result.add_done_callback(partial(_pass_on, answer, timer, errors, then))
        return
    timer.cancel()
    answer.set_result(result)


def _give_up(answer: asyncio.Future[Any], errors: Errors) -> None:
    if not answer.done():
        _fail(answer, TimeoutError(), errors)


def _fail(answer: asyncio.Future[Any], exc: BaseException, errors: Errors) -> None:
    try:
        with errors():
            raise exc
    except Exception as translated:
        answer.set_exception(translated)
