"""`ThreadRow` and `RunRow`: what the metadata stores keep, and the words for their states."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Any, Final, Literal, TypedDict

RunStatus = Literal["pending", "running", "success", "error", "timeout", "interrupted"]
"""The LangGraph SDK's run statuses (`langgraph_sdk.schema.RunStatus`)."""

TerminalStatus = Literal["success", "error", "timeout", "interrupted"]
"""The statuses that never change again."""

ThreadStatus = Literal["idle", "busy", "interrupted", "error"]
"""The LangGraph SDK's thread statuses. `busy` is derived: a thread with an active run."""

SettledStatus = Literal["idle", "interrupted", "error"]
"""How the last run left its thread."""

RUN_STATUSES: Final = ("pending", "running", "success", "error", "timeout", "interrupted")
ACTIVE_STATUSES: Final = ("pending", "running")
TERMINAL_STATUSES: Final = ("success", "error", "timeout", "interrupted")
THREAD_STATUSES: Final = ("idle", "busy", "interrupted", "error")


class ThreadTTL(TypedDict):
    """How long a thread lives after its last change; the LangGraph SDK's thread `ttl`."""

    strategy: Literal["delete", "keep_latest"]
    ttl: float
    """Minutes."""


class ThreadRow(TypedDict):
    """One thread. Times are aware UTC; the dicts are the caller's own copies."""

    thread_id: str
    owner: str | None
    status: ThreadStatus
    metadata: dict[str, Any]
    config: dict[str, Any]
    ttl: ThreadTTL | None
    created_at: datetime
    updated_at: datetime


class RunError(TypedDict):
    """Why a run did not succeed: a code for programs, a class and a scrubbed, bounded message for people."""

    code: str
    type: str | None
    message: str


class RunRow(TypedDict):
    """One run. Times are aware UTC; the dicts are the caller's own copies."""

    run_id: str
    thread_id: str | None
    owner: str | None
    worker_id: str
    status: RunStatus
    metadata: dict[str, Any]
    kwargs: dict[str, Any]
    error: RunError | None
    http_status: int | None
    created_at: datetime
    started_at: datetime
    finished_at: datetime | None
    checkpoint_count: int
    """Checkpoints of all namespaces that the run wrote."""
    first_checkpoint_id: str | None
    last_checkpoint_id: str | None
    paused: bool
    """Whether the run left its graph waiting for a human."""
    late_outcome: dict[str, Any] | None
    """How the run ended by its worker's account, where that came when it had been ended otherwise: the first such
    `RunFinish`, without its ids, and with `finished_at` as ISO 8601 text."""


class RunFinish(TypedDict):
    """What is known when a run ends: the argument of `MetadataStoreProtocol.finish_run`."""

    run_id: str
    worker_id: str
    status: TerminalStatus
    finished_at: datetime
    thread_id: str | None
    """The thread the run turned out to belong to, for a row that names none yet."""
    thread_status: SettledStatus | None
    """How the thread is left; None leaves it as it was (the run wrote nothing)."""
    error: RunError | None
    http_status: int | None
    metadata: dict[str, Any]
    """Merged over the row's, key by key."""
    checkpoint_count: int
    first_checkpoint_id: str | None
    last_checkpoint_id: str | None
    paused: bool


class AnyOwner(Enum):
    """The type of `ANY_OWNER`."""

    ANY_OWNER = "any owner"


ANY_OWNER: Final = AnyOwner.ANY_OWNER
"""The default of every `owner=` that filters: rows of all owners. None means the rows that have no owner."""

OwnerFilter = str | None | Literal[AnyOwner.ANY_OWNER]

MetadataFilter = Mapping[str, str | int | float | bool | None]
