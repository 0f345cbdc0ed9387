"""`Run` and `current_run()`: which run the code now executing belongs to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Set
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from uuid_utils import uuid7

from skeino.errors import InvalidInputError, RunInterruptedError, ThreadBusyError
from skeino.holds import Holds, MultitaskStrategy, checked_strategy
from skeino.ledger import Ledger
from skeino.validation import validate_id, validate_thread_id

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from skeino.persistence.rows import RunStatus, ThreadRow

logger = logging.getLogger("skeino")

_NO_THREADS: Final[Set[str]] = frozenset()

current_run_var: ContextVar[Run | None] = ContextVar("skeino_current_run", default=None)
"""The context variable itself; `current_run()` reads it, and only a tracker sets it."""


guard_var: ContextVar[Run | None] = ContextVar("skeino_guard", default=None)
"""Of a request that is no run but has an owner (HEAD, WebSockets): a `Run` that was never started, which checks
whose the threads are."""


def current_run() -> Run | None:
    """The run that the calling code belongs to, or None outside of any.

    It reaches everything that inherits the request's context: sync and async endpoints, streaming bodies,
    background tasks, tasks, `asyncio.to_thread`, and a graph's nodes. It does not reach
    `loop.run_in_executor` and raw threads. A task that outlives its request still sees its run: `run.active`
    is False then.
    """
    return current_run_var.get()


class RunStore(Protocol):
    """What a run asks of the metadata store before its graph touches a thread."""

    async def attach_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> None: ...

    async def get_thread(self, thread_id: str) -> ThreadRow | None: ...


class RunClaims(Protocol):
    """How a run claims the threads that it writes to; `skeino.persistence.claims.ThreadClaims` is it."""

    patience: float

    async def claim(self, run: Run, thread_id: str, *, goes_on: bool = False) -> None: ...

    def release(self, run: Run) -> Collection[asyncio.Future[None]]: ...


Description = Callable[[], tuple[Mapping[str, Any], Mapping[str, Any] | None]]
"""Says with which `metadata` and `kwargs` a run's row begins."""


class Run:
    """One run in progress: a request, or whatever `tracker.run()` encloses.

    Application code reads `run_id`, `thread_id`, `owner`, `config`, `status`, `active`, `started_at`, `request_id`,
    `traceparent`, `trace_id` and `ledger`, may set `thread_id` once and `multitask_strategy`, may add to `metadata`
    (JSON values), which is kept with the run's row when it ends, and may call `fail()`. The rest is for trackers and
    savers.
    """

    __slots__ = (
        "__weakref__",
        "_allowed",
        "_asked_by_saver",
        "_attached",
        "_began",
        "_config_taken",
        "_creates_thread",
        "_failure",
        "_guarded",
        "_holds",
        "_ledger",
        "_metadata",
        "_multitask_strategy",
        "_must_attach",
        "_owner",
        "_request_id",
        "_run_id",
        "_status",
        "_thread_id",
        "_traceparent",
        "_used",
        "claims",
        "conflict",
        "describe",
        "loop",
        "minted_thread_id",
        "outcome",
        "outer",
        "store",
        "worker_id",
        "write_row",
    )

    def __init__(
        self,
        thread_id: str | None = None,
        owner: str | None = None,
        guarded: bool = False,
        creates_thread: bool = True,
        request_id: str | None = None,
        traceparent: str | None = None,
        store: RunStore | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        write_row: Callable[[Run], Awaitable[None]] | None = None,
        describe: Description | None = None,
        claims: RunClaims | None = None,
    ) -> None:
        self._request_id = request_id
        self._traceparent = traceparent
        self._run_id = str(uuid7())
        self._owner = owner if owner is None else validate_id(owner, "owner")
        self._began = time.time()
        self._thread_id = thread_id if thread_id is None else validate_thread_id(thread_id)
        self.store = store
        self._guarded = guarded or owner is not None
        self._creates_thread = creates_thread
        self.loop = loop or asyncio.get_running_loop()
        self.minted_thread_id = False
        self.write_row = write_row
        """Writes the run's row, where that waits until a saver reads or writes for it; None once it is written."""
        self.describe = describe
        """Says with which `metadata` and `kwargs` that row begins."""
        self.worker_id: str | None = None
        """The worker that the row names; None before it is written for the first time."""
        self.outcome: Any = None  # skeino_asgi's own
        """The tracker's own account of how a run ended that has no row."""
        self.outer: Run | None = None
        """The run that this one is part of, whose threads it may write to."""
        self.claims = claims
        """Claims threads, where the metadata store knows who writes to them."""
        self.conflict: ThreadBusyError | RunInterruptedError | None = None
        """With what another run has stopped this one."""
        self._holds: Holds | None = None
        self._multitask_strategy: MultitaskStrategy = "enqueue"
        self._attached = self._allowed = _NO_THREADS
        self._failure: BaseException | str | None = None
        self._ledger: Ledger | None = None
        self._metadata: dict[str, Any] | None = None
        self._must_attach = self._used = self._config_taken = self._asked_by_saver = False
        self._status: RunStatus = "running"

    def __repr__(self) -> str:
        return f"<Run {self.run_id} thread={self._thread_id!r} {self.status}>"

    @property
    def run_id(self) -> str:
        """UUIDv7, ours: a client never chooses it, and nobody changes it."""
        return self._run_id

    @property
    def owner(self) -> str | None:
        """The tenant or user whom the run and its threads belong to."""
        return self._owner

    @property
    def started_at(self) -> datetime:
        """Aware UTC."""
        return datetime.fromtimestamp(self._began, UTC)

    @property
    def status(self) -> RunStatus:
        """`running`, and how it ended once it has."""
        return self._status

    @property
    def active(self) -> bool:
        """False once the run has ended: a detached task that writes now writes after its run."""
        return self.status in ("pending", "running")

    @property
    def request_id(self) -> str | None:
        """What the sender of the request calls it (`X-Request-ID`), where that is well-formed."""
        return self._request_id

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context that the run belongs to: `00-<trace id>-<span id>-<flags>`."""
        return self._traceparent

    @property
    def trace_id(self) -> str | None:
        """The trace that the run belongs to: 32 hexadecimal digits of `traceparent`."""
        return None if self._traceparent is None else self._traceparent.split("-", 2)[1]

    @property
    def ledger(self) -> Ledger:
        """What the run wrote, as far as the saver has stored it."""
        if self._ledger is None:
            self._ledger = Ledger()
        return self._ledger

    @property
    def holds(self) -> Holds:
        """The threads that no other run writes to meanwhile."""
        if self._holds is None:
            self._holds = Holds()
        return self._holds

    @property
    def multitask_strategy(self) -> MultitaskStrategy:
        """What to do when another run writes to the thread, in LangGraph's words: `enqueue` waits for it, `reject`
        raises `ThreadBusyError`, `interrupt` makes the other's next call of the checkpointer raise
        `RunInterruptedError`, `rollback` deletes the checkpoints it has written as well. Set it before the graph runs.
        """
        return self._multitask_strategy

    @multitask_strategy.setter
    def multitask_strategy(self, strategy: MultitaskStrategy) -> None:
        self._multitask_strategy = checked_strategy(strategy)

    @property
    def metadata(self) -> dict[str, Any]:
        """What is kept with the run's row when it ends: add JSON values to it."""
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

    @metadata.setter
    def metadata(self, metadata: dict[str, Any]) -> None:
        self._metadata = metadata

    def fail(self, reason: BaseException | str) -> None:
        """End the run as `error` (`timeout` for a `TimeoutError`) though its response will be complete.

        For a stream that tells its reader of an error in a well-formed last event, say; or for the hook of a
        framework that answers exceptions itself, so that the row knows more than a status of 500. The run goes on
        until the request has ended; the first reason is kept, and an exception that is raised after it counts more.

        Args:
            reason: the exception, or a sentence; in the row it is scrubbed and bounded. A cancellation makes the run
                `interrupted`.

        Raises:
            InvalidInputError: it is neither.
        """
        given: object = reason
        if not isinstance(given, BaseException | str) or given == "" or (isinstance(given, str) and given.isspace()):
            raise InvalidInputError("run.fail() takes an exception, or a sentence that says what went wrong.")
        if not self.active:
            logger.warning("run.fail() came after the end of run %s, whose row has been closed.", self.run_id)
        self._used = True
        if self._failure is None:
            self._failure = reason

    @property
    def failure(self) -> BaseException | str | None:
        """What `fail()` was called with."""
        return self._failure

    @property
    def thread_id(self) -> str | None:
        """The thread this run belongs to, or None while no thread is known."""
        return self._thread_id

    @thread_id.setter
    def thread_id(self, thread_id: str) -> None:
        if self._thread_id is not None and thread_id != self._thread_id:
            raise InvalidInputError(
                f"The run {self.run_id} belongs to the thread {self._thread_id!r} already: start a run of its own for "
                "each thread, or have a request's thread known before its handler starts (thread_path=, thread_id=)."
            )
        self._used = True
        self._thread_id = validate_thread_id(thread_id)
        if thread_id not in self._attached:
            self._must_attach = self._creates_thread

    @property
    def config(self) -> RunnableConfig:
        """The config to invoke a graph with; a run without a thread gets a new one (UUIDv7).

        It never carries the run's id: LangGraph takes an equal id in a config and in a checkpoint for a
        resumption and drops the input (`pregel/_loop.py`, `_first`). The stamping saver adds it when it writes.
        """
        self._used = self._config_taken = True
        if self._thread_id is None:
            self.thread_id = new_id()
            self.minted_thread_id = True
        return {"configurable": {"thread_id": self._thread_id}}

    @property
    def guarded(self) -> bool:
        """Whether threads have owners here, so that each is checked before it is read."""
        return self._guarded

    @property
    def creates_thread(self) -> bool:
        """Whether the run may bring its thread into being: a reading request may not."""
        return self._creates_thread

    @property
    def thread_to_attach(self) -> str | None:
        """The thread that the handler chose, or wrote to, and that the store has yet to make this run's."""
        return self._thread_id if self._must_attach else None

    def end(self, status: RunStatus) -> None:
        """Note how it ended; what a detached task writes from now on is no longer counted."""
        self._status = status

    # ── The row ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def used(self) -> bool:
        """Whether its row says more than that there was a request: somebody took its config, added metadata …"""
        return self._used or bool(self._metadata)

    @property
    def seems_unsaved(self) -> bool:
        """Whether somebody took its config, as for a graph, and no checkpointer of skeino's was asked for anything."""
        return self._config_taken and not self._asked_by_saver

    def mark_used(self) -> None:
        """Note that its row is wanted."""
        self._used = True

    # ── Threads ──────────────────────────────────────────────────────────────────────────────────────────

    def mark_attached(self, thread_id: str) -> None:
        """Note that the store has this thread as this run's, so that the saver need not ask."""
        self._attached = self._attached | {thread_id}
        if thread_id == self._thread_id:
            self._must_attach = False

    def attach_at_the_end(self, thread_id: str) -> None:
        """Note that the store is told of this thread when the run ends, for it cannot be told now."""
        self._attached = self._attached | {thread_id}
        self._must_attach = self._must_attach or thread_id == self._thread_id

    def may_write(self, thread_id: str) -> bool:
        """Whether nothing has to be done first.

        Raises:
            RunInterruptedError: another run has taken it.
        """
        if self._holds is None:
            return self.claims is None and self.write_row is None and thread_id in self._attached
        try:
            return self._holds.has(thread_id)
        except RunInterruptedError as exc:
            self.conflict = exc
            raise

    def release_threads(self) -> Collection[asyncio.Future[None]]:
        """Let other runs write to the threads that this one holds; durable when all of these are done."""
        return () if self._holds is None or self.claims is None else self.claims.release(self)

    @property
    def has_claimed(self) -> bool:
        """Whether there may be threads that it holds, or has held."""
        return self._holds is not None

    def fence_of(self, thread_id: str) -> int | None:
        """What its writes to the thread go with; None where nobody claims threads."""
        return None if self._holds is None else self._holds.fence_of(thread_id)

    def refused(self, thread_id: str) -> RunInterruptedError:
        """The database has refused a write of this run for its fence: what its caller is to be told."""
        if isinstance(self.conflict, RunInterruptedError):  # of several that were on their way, the first says it
            return self.conflict
        exc = RunInterruptedError(
            f"The run {self.run_id} has lost the thread {thread_id!r}: another run has taken it, it was deleted, or "
            "the run's process counts as dead; or the graph's checkpointer is another tracker's. Nothing was written."
        )
        self.lose(exc)
        return exc

    def lose(self, reason: RunInterruptedError) -> None:
        """Refuse whatever it asks of the checkpointer from now on."""
        self.conflict = reason
        self.holds.loses(reason)

    def must_check(self, thread_id: str) -> bool:
        """Whether the store has to be asked whose thread it is."""
        return self._guarded and thread_id not in self._attached and thread_id not in self._allowed

    def mark_allowed(self, thread_id: str) -> None:
        """Note that the thread is this run's owner's."""
        self._allowed = self._allowed | {thread_id}

    def learn_thread(self, thread_id: str) -> None:
        """The run works on this thread: a run that has none belongs to it from now on."""
        self._asked_by_saver = True
        if self._thread_id is None:
            self._thread_id = thread_id

    def is_attached(self, thread_id: str) -> bool:
        """Whether the store has this thread as this run's, or will have."""
        return thread_id in self._attached

    def forget_thread(self, thread_id: str) -> None:
        """The thread was deleted: writing to it again makes it anew, and ending does not bring it back."""
        self._attached = self._attached - {thread_id}
        self._allowed = self._allowed - {thread_id}
        if thread_id == self._thread_id:
            self._must_attach = False
        if self._holds is not None:
            self._holds.forgets(thread_id)


def new_id() -> str:
    """A new UUIDv7 (RFC 9562) as text: it sorts by the time it was made."""
    return str(uuid7())
