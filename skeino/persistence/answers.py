"""`made_of()`: what follows from the answer to a write, as a future: nobody needs a task to wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any


def made_of(answer: asyncio.Future[Any], then: Callable[[Any], Any]) -> asyncio.Future[Any]:
    """What `then` makes of the answer; where that is a task, its result. Whoever cancels it cancels nothing else."""
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
