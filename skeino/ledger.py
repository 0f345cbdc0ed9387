"""`Ledger`: what a run wrote."""

from __future__ import annotations

from typing import Final

_NONE: Final[frozenset[tuple[str, str]]] = frozenset()
"""Pauses: thread and checkpoint (ids sort by time)."""


class Ledger:
    """What a run wrote, as the stamping saver saw it; it lands in the run's row when the run ends."""

    __slots__ = ("_begun", "_closed", "_pauses", "checkpoint_count", "first_checkpoint_id", "last_checkpoint_id")

    def __init__(self) -> None:
        self.checkpoint_count = 0
        """Checkpoints of all namespaces, subgraphs' included."""
        self.first_checkpoint_id: str | None = None
        """The first checkpoint of the root namespace (ids sort by time)."""
        self.last_checkpoint_id: str | None = None
        self._pauses = _NONE
        self._begun: list[tuple[str, str, str]] = []
        self._closed = False

    @property
    def paused(self) -> bool:
        """Whether a graph stands at an `interrupt()` and waits for a human."""
        return bool(self._pauses)

    def paused_on(self, thread_id: str | None) -> bool:
        """Whether the graph of this very thread does."""
        return bool(self._pauses) and any(thread == thread_id for thread, _ in self._pauses)

    def begins(self, thread_id: str, namespace: str, checkpoint_id: str) -> None:
        """Note a checkpoint that the saver is asked to store, and will, though who asks may be cancelled."""
        self._begun.append((thread_id, namespace, checkpoint_id))

    def failed(self, thread_id: str, namespace: str, checkpoint_id: str) -> None:
        """The saver has not stored it."""
        if (call := (thread_id, namespace, checkpoint_id)) in self._begun:
            self._begun.remove(call)

    def wrote(self, thread_id: str, namespace: str, checkpoint_id: str) -> None:
        """Count a checkpoint that the saver has stored. A newer one of its thread ends the thread's pauses."""
        if (call := (thread_id, namespace, checkpoint_id)) in self._begun:
            self._begun.remove(call)
        elif self._closed:
            return
        self.checkpoint_count += 1
        if namespace == "":
            if self.first_checkpoint_id is None or checkpoint_id < self.first_checkpoint_id:
                self.first_checkpoint_id = checkpoint_id
            if self.last_checkpoint_id is None or checkpoint_id > self.last_checkpoint_id:
                self.last_checkpoint_id = checkpoint_id
            if self._pauses:
                self._pauses -= {
                    (thread, at) for thread, at in self._pauses if thread == thread_id and at < checkpoint_id
                }

    def close(self) -> None:
        """The run has ended: what is on its way counts, and what a task that outlives the run writes does not."""
        while self._begun:
            self.wrote(*self._begun[0])
        self._closed = True

    def interrupted(self, thread_id: str, namespace: str, checkpoint_id: str) -> None:
        """Note that a task of this checkpoint called `interrupt()`; a subgraph's pause shows in its root, too."""
        if namespace == "":
            self._pauses |= {(thread_id, checkpoint_id)}
