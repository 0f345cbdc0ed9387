"""Leases: which processes live. The contract of those who keep them, and why a run ends that nobody else will end.

A process that tracks runs holds a *lease*: a row that it renews from time to time (`Heartbeat`). A lease that was not
renewed in time is declared *lost* by another process, for good, and the runs of the worker that held it are ended as
errors. All times are by the database's clock, so that no two processes have to agree on the time.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final, Protocol, runtime_checkable

from skeino.persistence.rows import RunError

PATIENCE: Final = 1.5
"""Who declares a lease lost has renewed its own without a gap for so many times the other's length.

After a restart of the database all leases have run out. By then whoever lives has renewed its own again: its longest
pause between two attempts and the longest attempt are less than half of its lease.
"""

KEPT: Final = timedelta(hours=1)
"""How long a lost lease is kept. A start of a run that was under way when its worker was declared dead may be committed
afterwards: such a run is found by its worker's lost lease, and ended as well."""

WORKER_LOST: Final = RunError(
    code="worker_lost", type=None, message="The process that worked on the run was not heard of any more."
)
"""Of a run whose worker has lost its lease."""

END_UNKNOWN: Final = RunError(
    code="end_unknown", type=None, message="The process that worked on the run lives, and knows of no such run."
)
"""Of a run whose worker has neither the run nor its end."""


class Leases(Protocol):
    """The leases of one database, over a connection of its own. Its calls block: one thread has it to itself.

    It connects when it is first asked, and again after a failure. No call takes longer than `limit`, as given to
    `open_leases`, whatever the database does; it raises `StoreUnavailableError` then, and other errors of skeino's.
    """

    def acquire(self, worker_id: str, seconds: float) -> datetime:
        """A lease for this worker, which has had none before: not even by a call that failed.

        Args:
            worker_id: names the process, as its runs do.
            seconds: how long the lease is good for, from now on by the database's clock.

        Returns:
            When it runs out.
        """
        ...

    def renew(self, worker_id: str, seconds: float) -> datetime | None:
        """Let the lease be good for `seconds` from now on, even if it had run out.

        Returns:
            When it runs out; None if it was declared lost, which is for good, or is gone.
        """
        ...

    def release(self, worker_id: str) -> None:
        """Give the lease back. While the worker has active runs it runs out at once instead: others end them then."""
        ...

    def declare_lost(self, steady_for: float) -> list[str]:
        """Declare leases lost that have run out, but none that is longer than the caller has been steady.

        Args:
            steady_for: seconds for which the caller has renewed its own without a gap. A lease of `s` seconds is
                left alone unless that is more than `PATIENCE * s`.

        Returns:
            The workers that held them.
        """
        ...

    def end_runs_of_lost(self, limit: int) -> int:
        """End active runs of workers whose lease is lost as errors (`WORKER_LOST`), now by the database's clock, and
        leave their threads as `error`; a run with its thread, or neither. What another session holds is left for the
        next time, so several may do this at once. Forgets leases that were lost longer ago than `KEPT`.

        Returns:
            How many it has ended: at most `limit`; as many mean that there may be more.
        """
        ...

    def active_runs(self, worker_id: str, *, older_than: float, limit: int) -> list[str]:
        """The worker's active runs, started more than so many seconds ago by the database's clock; at most `limit`."""
        ...

    def end_runs(self, worker_id: str, run_ids: Collection[str]) -> int:
        """End those of these runs that are the worker's and active, as errors (`END_UNKNOWN`), and their threads with
        them, as in `end_runs_of_lost`; returns how many.
        """
        ...

    def close(self) -> None:
        """Close the connection. Raises nothing."""
        ...


@runtime_checkable
class LeasingStore(Protocol):
    """A metadata store that keeps leases, too. Without it a store's runs stay active when their process dies."""

    def open_leases(self, limit: float) -> Leases:
        """Its leases, for one thread; not connected yet.

        Args:
            limit: seconds that one call may take.
        """
        ...
