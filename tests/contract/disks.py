"""What group commit writes to: a disk that can be kept waiting, by a task or by a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from skeino.persistence.group_commit import AGAIN, GroupCommit, TaskCommit, ThreadCommit
from skeino.persistence.one_thread import OneThread

variable: ContextVar[str] = ContextVar("variable", default="none")


class Disk:
    """Writes numbers when it is let, and refuses negative ones; notes each batch."""

    turn: asyncio.Event | threading.Event
    group: GroupCommit[int]

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.turn.set()
        self.failure: BaseException | None = None
        self.again = 0
        """How many of the next batch are not done."""

    def end(self) -> None:
        """Let what keeps it go."""

    def _begins(self, numbers: Sequence[int]) -> None:
        self.batches.append(list(numbers))
        assert variable.get() == "none"

    def _answers(self, numbers: Sequence[int]) -> list[Any]:
        if self.failure is not None:
            raise self.failure
        answers: list[Any] = [ValueError(number) if number < 0 else number * 10 for number in numbers]
        if again := self.again:
            self.again = 0
            answers[-again:] = [AGAIN] * again
        return answers


class TaskDisk(Disk):
    """Written to by coroutines."""

    def __init__(self, **limits: Any) -> None:
        self.turn: asyncio.Event = asyncio.Event()
        self.group: TaskCommit[int] = TaskCommit(self._write_batch, "The disk", **limits)
        super().__init__()

    async def _write_batch(self, numbers: Sequence[int]) -> list[Any]:
        self._begins(numbers)
        await self.turn.wait()
        return self._answers(numbers)


class ThreadDisk(Disk):
    """Written to by a thread, which waits."""

    def __init__(self, **limits: Any) -> None:
        self.turn: threading.Event = threading.Event()
        self.thread = OneThread("disk")
        self.group: ThreadCommit[int] = ThreadCommit(self.thread, self._write_batch, "The disk", **limits)
        super().__init__()

    def end(self) -> None:
        self.turn.set()
        self.thread.end()

    def _write_batch(self, numbers: Sequence[int]) -> list[Any]:
        self._begins(numbers)
        assert self.turn.wait(30)
        return self._answers(numbers)
