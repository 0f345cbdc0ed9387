"""`Holds`: the threads that a run holds, so that no other run writes to them meanwhile."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

from skeino.errors import InvalidInputError, RunInterruptedError

MultitaskStrategy = Literal["enqueue", "reject", "interrupt", "rollback"]
"""The LangGraph SDK's words for what becomes of two runs on one thread (`langgraph_sdk.schema.MultitaskStrategy`)."""

MULTITASK_STRATEGIES: Final = ("enqueue", "reject", "interrupt", "rollback")


def checked_strategy(strategy: MultitaskStrategy) -> MultitaskStrategy:
    """The strategy, if there is one of that name.

    Raises:
        InvalidInputError: there is not.
    """
    if strategy not in MULTITASK_STRATEGIES:
        raise InvalidInputError(f"multitask_strategy must be one of {', '.join(MULTITASK_STRATEGIES)}.")
    return strategy


class Holds:
    """What a run knows of its claims (`skeino.persistence.claims`).

    A thread's *fence* is a number that grows whenever another run takes the thread. What a run writes to a thread goes
    with the fence it had when it took it, and is refused once that is no longer the thread's.
    """

    __slots__ = ("_asked", "_fences", "_held", "_locks", "_lost")

    def __init__(self) -> None:
        self._fences: dict[str, int] = {}
        self._held: set[str] = set()
        self._asked: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._lost: RunInterruptedError | None = None

    def has(self, thread_id: str) -> bool:
        """Whether the run holds the thread now, as far as this process knows.

        Raises:
            RunInterruptedError: another run, or another process, has taken what this one had.
        """
        if self._lost is not None:
            raise self._lost
        return thread_id in self._held

    def fence_of(self, thread_id: str) -> int | None:
        """What its writes to the thread go with, also after it has let the thread go; None if it never had it."""
        return self._fences.get(thread_id)

    def lock_of(self, thread_id: str) -> asyncio.Lock:
        """For the executions of one run that want the same thread: one of them claims it."""
        return self._locks.setdefault(thread_id, asyncio.Lock())

    def asks(self, thread_id: str) -> None:
        """The run asks for the thread: it may have it from now on, even if no answer comes."""
        self._asked.add(thread_id)

    def takes(self, thread_id: str, fence: int) -> None:
        """The run has the thread; or the run that it is part of has it, and will let it go."""
        self._fences[thread_id] = fence
        self._held.add(thread_id)

    def does_without(self, thread_id: str) -> None:
        """The thread could not be claimed: a graph's synchronous methods stop the event loop that would do it."""
        self._held.add(thread_id)

    def lets_go(self) -> list[str]:
        """The threads that are to be released now: all that it has, or may have."""
        threads = list(self._asked)
        self._asked.clear()
        self._held.clear()
        return threads

    def does_not_get(self, thread_id: str) -> None:
        """The thread has not come to the run, which asks for it no longer."""
        self._asked.discard(thread_id)

    def forgets(self, thread_id: str) -> None:
        """The thread is gone. One of the same name would be another."""
        self._held.discard(thread_id)
        self._fences.pop(thread_id, None)

    def loses(self, reason: RunInterruptedError) -> None:
        """Whatever it does next is refused."""
        self._lost = self._lost or reason
