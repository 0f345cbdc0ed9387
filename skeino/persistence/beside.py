"""`Beside`: which metadata store stands beside a checkpointer, and what of a run it must not write for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from skeino.errors import ConfigurationError
from skeino.runs import Run

if TYPE_CHECKING:
    from skeino.persistence.protocol import MetadataStoreProtocol


class Beside(NamedTuple):
    """The other half, where both were opened together."""

    store: MetadataStoreProtocol
    fence_here: Callable[[str], int | None] | None
    """A thread's fence, where this process alone has it: then no database looks at it before it writes."""


def refuse_another_trackers_run(beside: Beside | None, run: Run) -> None:
    """Refuse a run whose row is in memory alone, where the saver's runs are in a database; or the other way round.

    That is certainly a mistake. Two stores of databases may be of the same one, however each is called.

    Raises:
        ConfigurationError: it is so.
    """
    if beside is None or beside.store is run.store or run.store is None:
        return
    if hasattr(beside.store, "fence_here") != hasattr(run.store, "fence_here"):
        raise ConfigurationError(
            f"The graph's checkpointer stands beside another metadata store ({type(beside.store).__name__}) than that "
            f"of the run {run.run_id} ({type(run.store).__name__}): compile the graph with the checkpointer of the "
            "tracker that RunMiddleware has (tracker=)."
        )


def refuse_what_was_lost(beside: Beside | None, run: Run, thread_id: str) -> None:
    """Refuse a write to a thread that another run has taken, or that was deleted, where no database sees to that.

    Raises:
        RunInterruptedError: it is so.
    """
    if beside is None or beside.fence_here is None or beside.store is not run.store:
        return
    fence = run.fence_of(thread_id)
    if fence is not None and fence != beside.fence_here(thread_id):
        raise run.refused(thread_id)
