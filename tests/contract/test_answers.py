"""The answer to a write that nobody waits for in a task: in time, translated, and its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from skeino.errors import StoreError, StoreUnavailableError
from skeino.persistence.answers import answer_to


@contextmanager
def errors() -> Iterator[None]:
    try:
        yield
    except TimeoutError as exc:
        raise StoreUnavailableError("too late", maybe_done=True) from exc
    except ZeroDivisionError as exc:
        raise StoreError("refused") from exc


@pytest.fixture
async def written() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def test_the_answer_is_what_the_write_results_in(written: asyncio.Future[Any]) -> None:
    answer = answer_to(written, within=5, errors=errors)
    written.set_result("done")
    assert await answer == "done"


async def test_the_answer_is_made_of_what_the_write_results_in(written: asyncio.Future[Any]) -> None:
    answer = answer_to(written, within=5, errors=errors, then=len)
    written.set_result("done")
    assert await answer == 4


async def test_what_is_found_out_by_a_task_is_waited_for(written: asyncio.Future[Any]) -> None:
    async def length(text: str) -> int:
        await asyncio.sleep(0.01)
        return len(text)

    answer = answer_to(written, within=5, errors=errors, then=lambda text: asyncio.create_task(length(text)))
    written.set_result("done")
    assert await answer == 4


async def test_a_task_that_goes_on_with_the_write_gives_its_result(written: asyncio.Future[Any]) -> None:
    async def goes_on() -> str:
        await asyncio.sleep(0.01)
        return "done"

    answer = answer_to(written, within=5, errors=errors, then=len)
    written.set_result(asyncio.create_task(goes_on()))
    assert await answer == 4


async def test_errors_are_translated(written: asyncio.Future[Any]) -> None:
    answer = answer_to(written, within=5, errors=errors)
    written.set_exception(ZeroDivisionError())
    with pytest.raises(StoreError, match="refused"):
        await answer


async def test_an_answer_that_cannot_be_made_is_an_error(written: asyncio.Future[Any]) -> None:
    answer = answer_to(written, within=5, errors=errors, then=lambda number: 1 / number)
    written.set_result(0)
    with pytest.raises(StoreError, match="refused"):
        await answer


async def test_nobody_waits_longer_than_the_limit(written: asyncio.Future[Any]) -> None:
    answer = answer_to(written, within=0.05, errors=errors)
    with pytest.raises(StoreUnavailableError, match="too late"):
        await asyncio.wait_for(answer, 1)
    written.set_exception(ZeroDivisionError())  # which nobody is told any more
    await asyncio.sleep(0)


async def test_a_task_that_goes_on_with_the_write_is_not_waited_for_longer_than_the_limit(
    written: asyncio.Future[Any],
) -> None:
    task = asyncio.create_task(asyncio.sleep(0.2, "done"))
    answer = answer_to(written, within=0.05, errors=errors)
    written.set_result(task)
    with pytest.raises(StoreUnavailableError, match="too late"):
        await asyncio.wait_for(answer, 1)
    assert await task == "done"


async def test_a_caller_that_is_cancelled_leaves_the_write_alone(written: asyncio.Future[Any]) -> None:
    answer = answer_to(written, within=5, errors=errors)
    answer.cancel()
    await asyncio.sleep(0)
    assert not written.cancelled()
    written.set_result("done")
    await asyncio.sleep(0)


async def test_a_write_that_is_cancelled_cancels_its_answer(written: asyncio.Future[Any]) -> None:
    answer = answer_to(written, within=5, errors=errors)
    written.cancel()
    await asyncio.wait([answer])
    assert answer.cancelled()
