"""What follows from the answer to a write comes without a task, and is as good as the answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from skeino.errors import StoreError
from skeino.persistence.answers import made_of


@pytest.fixture
async def answer() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def length(text: str) -> int:
    await asyncio.sleep(0.01)
    return len(text)


async def test_it_is_made_of_the_answer(answer: asyncio.Future[Any]) -> None:
    made = made_of(answer, len)
    answer.set_result("done")
    assert await made == 4


async def test_what_a_task_finds_out_is_waited_for(answer: asyncio.Future[Any]) -> None:
    made = made_of(answer, lambda text: asyncio.create_task(length(text)))
    answer.set_result("done")
    assert await asyncio.wait_for(made, 1) == 4


async def test_what_the_task_fails_with_is_told(answer: asyncio.Future[Any]) -> None:
    made = made_of(answer, lambda text: asyncio.create_task(length(text)))
    answer.set_result(4)
    with pytest.raises(TypeError):
        await asyncio.wait_for(made, 1)


async def test_what_the_write_fails_with_is_told(answer: asyncio.Future[Any]) -> None:
    made = made_of(answer, len)
    answer.set_exception(StoreError("refused"))
    with pytest.raises(StoreError, match="refused"):
        await asyncio.wait_for(made, 1)


async def test_what_cannot_be_made_is_an_error(answer: asyncio.Future[Any]) -> None:
    made = made_of(answer, len)
    answer.set_result(4)
    with pytest.raises(TypeError):
        await asyncio.wait_for(made, 1)


@pytest.mark.parametrize("failure", [None, StoreError("refused")])
async def test_a_caller_that_is_cancelled_leaves_the_write_alone(
    answer: asyncio.Future[Any], failure: Exception | None
) -> None:
    made = made_of(answer, len)
    made.cancel()
    await asyncio.sleep(0)
    assert not answer.cancelled()
    if failure is None:
        answer.set_result("done")
    else:
        answer.set_exception(failure)
    await asyncio.sleep(0)


async def test_a_write_that_is_cancelled_cancels_what_follows(answer: asyncio.Future[Any]) -> None:
    made = made_of(answer, len)
    answer.cancel()
    await asyncio.wait([made], timeout=1)
    assert made.cancelled()
