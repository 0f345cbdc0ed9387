"""`Run` and `current_run()`: which run the code now executing belongs to."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from uuid_utils import uuid7

from skeino.errors import InvalidInputError, ThreadNotFoundError
from skeino.validation import validate_id, validate_thread_id

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from skeino.persistence.rows import RunStatus, ThreadRow

current_run_var: ContextVar[Run | None] = ContextVar("skeino_current_run", default=None)
"""The context variable itself; `current_run()` reads it, and only a tracker sets it."""


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


class Run:
    """One run in progress: a request, or whatever `tracker.run()` encloses.

    Application code reads `run_id`, `thread_id`, `owner`, `config`, `status`, `active` and `ledger`, may set
    `thread_id` once, and may add to `metadata` (JSON values), which is kept with the run's row when it ends.
    """

    __slots__ = (
        "__weakref__",
        "_allowed",
        "_attached",
        "_creates_thread",
        "_guarded",
        "_loop",
        "_must_attach",
        "_store",
        "_thread_id",
        "ledger",
        "metadata",
        "minted_thread_id",
        "owner",
        "run_id",
        "started_at",
        "status",
    )

    def __init__(
        self,
        run_id: str | None = None,
        *,
        thread_id: str | None = None,
        owner: str | None = None,
        store: RunStore | None = None,
        guarded: bool = False,
        creates_thread: bool = True,
    ) -> None:
        self.run_id = run_id if run_id is not None else new_id()
        """UUIDv7, ours: a client never chooses it."""
        self.owner = owner if owner is None else validate_id(owner, "owner")
        """The tenant or user whom the run and its threads belong to."""
        self.metadata: dict[str, Any] = {}
        self.status: RunStatus = "running"
        self.started_at = datetime.now(UTC)
        self.ledger = Ledger()
        self.minted_thread_id = False
        self._thread_id = thread_id if thread_id is None else validate_thread_id(thread_id)
        self._store = store
        self._guarded = guarded or owner is not None
        self._creates_thread = creates_thread
        self._must_attach = False
        self._attached: set[str] = set()
        self._allowed: set[str] = set()
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<Run {self.run_id} thread={self._thread_id!r} {self.status}>"

    @property
    def active(self) -> bool:
        """False once the run has ended: a detached task that writes now writes after its run."""
        return self.status in ("pending", "running")

    @property
    def thread_id(self) -> str | None:
        """The thread this run belongs to, or None while no thread is known."""
        return self._thread_id

    @thread_id.setter
    def thread_id(self, thread_id: str) -> None:
        if self._thread_id is not None and thread_id != self._thread_id:
            raise InvalidInputError(
                f"The run {self.run_id} belongs to another thread already: start a run of its own for each thread."
            )
        self._thread_id = validate_thread_id(thread_id)
        self._creates_thread = self._must_attach = True

    @property
    def config(self) -> RunnableConfig:
        """The config to invoke a graph with; a run without a thread gets a new one (UUIDv7).

        It never carries the run's id: LangGraph takes an equal id in a config and in a checkpoint for a
        resumption and drops the input (`pregel/_loop.py`, `_first`). The stamping saver adds it when it writes.
        """
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
        return self._thread_id if self._must_attach and self._thread_id not in self._attached else None

    def mark_attached(self, thread_id: str) -> None:
        """Note that the store has this thread as this run's, so that the saver need not ask."""
        self._attached.add(thread_id)

    async def allow_write(self, thread_id: str) -> None:
        """Make sure, once per thread, that it exists, is this run's owner's, and that the run's row names it.

        Raises:
            ThreadNotFoundError: it belongs to another owner.
            StoreUnavailableError: the metadata store does not answer.
        """
        if thread_id in self._attached:
            return
        if not self.active:  # a detached task: the row is closed, the owner still counts
            await self.allow_read(thread_id)
            return
        if self._store is not None:
            await self._store.attach_thread(self.run_id, thread_id, owner=self.owner)
        self._learn(thread_id)
        self._attached.add(thread_id)

    async def allow_read(self, thread_id: str) -> None:
        """Make sure, once per thread, that it is not another owner's. Costs nothing where nobody has an owner.

        Raises:
            ThreadNotFoundError: it belongs to another owner.
        """
        if self._guarded and thread_id not in self._attached and thread_id not in self._allowed:
            row = await self._store.get_thread(thread_id) if self._store is not None else None
            if row is not None and row["owner"] != self.owner:
                raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
            self._allowed.add(thread_id)
        self._learn(thread_id)

    def allow_write_blocking(self, thread_id: str) -> None:
        """`allow_write` for a saver's synchronous methods."""
        if thread_id not in self._attached and self._wait(self.allow_write(thread_id)):
            self._learn(thread_id)
            self._must_attach = True

    def allow_read_blocking(self, thread_id: str) -> None:
        """`allow_read` for a saver's synchronous methods."""
        if not self._guarded or thread_id in self._attached or thread_id in self._allowed:
            self._learn(thread_id)
        else:
            self._wait(self.allow_read(thread_id))

    def _wait(self, coroutine: Any) -> bool:
        """Run the coroutine from a worker thread; True when that cannot be, and the row is settled at the end."""
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
            return False
        coroutine.close()
        if self._guarded:
            raise InvalidInputError(
                "A graph's synchronous methods cannot check a thread's owner on the event loop: use ainvoke or astream."
            )
        return True

    def _learn(self, thread_id: str) -> None:
        if self._thread_id is None:
            self._thread_id = thread_id


class Ledger:
    """What a run wrote, as the stamping saver saw it; it lands in the run's row when the run ends."""

    __slots__ = ("_open_pauses", "_writing", "checkpoint_count", "first_checkpoint_id", "last_checkpoint_id")

    def __init__(self) -> None:
        self.checkpoint_count = 0
        """Checkpoints of all namespaces, subgraphs' included."""
        self.first_checkpoint_id: str | None = None
        """The first checkpoint of the root namespace (ids sort by time)."""
        self.last_checkpoint_id: str | None = None
        self._open_pauses: set[tuple[str, str]] = set()
        self._writing: set[str] = set()

    @property
    def paused(self) -> bool:
        """Whether the graph stands at an `interrupt()` and waits for a human."""
        return bool(self._open_pauses)

    def begin(self, checkpoint_id: str) -> bool:
        """Note a write on its way; False if it is already (a saver whose `aput` calls its own `put`)."""
        if checkpoint_id in self._writing:
            return False
        self._writing.add(checkpoint_id)
        return True

    def end(self, checkpoint_id: str) -> None:
        """The write is over, well or badly."""
        self._writing.discard(checkpoint_id)

    def wrote(self, thread_id: str, namespace: str, checkpoint_id: str, parent_id: str | None) -> None:
        """Count a checkpoint that the saver has stored. A child of a paused checkpoint ends that pause."""
        self.checkpoint_count += 1
        if namespace == "":
            if self.first_checkpoint_id is None or checkpoint_id < self.first_checkpoint_id:
                self.first_checkpoint_id = checkpoint_id
            if self.last_checkpoint_id is None or checkpoint_id > self.last_checkpoint_id:
                self.last_checkpoint_id = checkpoint_id
            if parent_id is not None:
                self._open_pauses.discard((thread_id, parent_id))

    def interrupted(self, thread_id: str, namespace: str, checkpoint_id: str) -> None:
        """Note that a task of this checkpoint called `interrupt()`; a subgraph's pause shows in its root, too."""
        if namespace == "":
            self._open_pauses.add((thread_id, checkpoint_id))


def new_id() -> str:
    """A new UUIDv7 (RFC 9562) as text: it sorts by the time it was made."""
    return str(uuid7())
