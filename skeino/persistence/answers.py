"""Answers to those who wait: `made_of()`, what follows from one; `fail()`, one failure for several."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from skeino.errors import StoreError


def fail(future: asyncio.Future[Any], failure: BaseException) -> None:
    """Tell one of several who wait what all of them failed with: an exception of its own, where it is one of ours.

    Who raises one adds to its traceback, and who tries again to its `maybe_done`.
    """
    if isinstance(failure, StoreError):
        own = copy.copy(failure)
        own.__cause__ = failure.__cause__
        failure = own
    future.set_exception(failure)


def made_of(answer: asyncio.Future[Any], then: Callable[[Any], Any]) -> asyncio.Future[Any]:
    """What `then` makes of the answer; where that is a task, its result. Whoever cancels it cancels nothing else.

    No task is needed to wait for it.
    """
    made: asyncio.Future[Any] = answer.get_loop().create_future()
    answer.add_done_callback(partial(_make, made, then))
    return made


def _make(made: asyncio.Future[Any], then: Callable[[Any], Any], answer: asyncio.Future[Any]) -> None:
    failure = None if answer.cancelled() else answer.exception()
    if made.done():  # its caller was cancelled
        return
    if answer.cancelled():  # with the event loop
        made.cancel()
        return
    if failure is not None:
        made.set_exception(failure)
        return
    try:
        result = then(answer.result())
    except Exception as exc:
        made.set_exception(exc)
        return
    if isinstance(result, asyncio.Future):
        result.add_done_callback(partial(_make, made, _as_it_is))
    else:
        made.set_result(result)


def _as_it_is(result: Any) -> Any:
    return result
