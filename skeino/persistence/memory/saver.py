"""LangGraph's in-memory saver, with the operations that it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from langgraph.checkpoint.memory import InMemorySaver

from skeino.errors import ThreadExistsError
from skeino.persistence.pruning import (
    CheckpointOutline,
    all_but_latest,
    checked_copy,
    checked_prune,
    checked_run_ids,
    of_runs,
    target_exists,
)
from skeino.persistence.stamping import RunStampMixin


class CompleteInMemorySaver(InMemorySaver):
    """`InMemorySaver` that can also delete by run, copy and prune.

    Its dictionaries: `storage` (thread → namespace → checkpoint id → checkpoint, metadata, parent), `writes` and
    `blobs` by thread, namespace and checkpoint, or channel and version.
    """

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        wanted = checked_run_ids(run_ids)
        self._delete([gone for thread_id in [*self.storage] for gone in of_runs(self._outlines(thread_id), wanted)])

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        source, target = checked_copy(source_thread_id, target_thread_id)
        if self._has_checkpoints(target):
            raise ThreadExistsError(target_exists(target))
        if not self._has_checkpoints(source):
            return
        InMemorySaver.delete_thread(self, target)  # writes that have no checkpoint
        for key, writes in [*self.writes.items()]:
            if key[0] == source:
                self.writes[(target, *key[1:])] = dict(writes)
        for (thread_id, *place), blob in [*self.blobs.items()]:
            if thread_id == source:
                self.blobs[(target, *place)] = blob  # type: ignore[index]
        for namespace, checkpoints in [*self.storage[source].items()]:
            self.storage[target][namespace].update(checkpoints)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        threads, strategy = checked_prune(thread_ids, strategy)
        if strategy == "delete":
            for thread_id in threads:
                InMemorySaver.delete_thread(self, thread_id)
        else:
            self._delete([gone for thread_id in threads for gone in all_but_latest(self._outlines(thread_id))])

    # The asynchronous methods call those of this class: a subclass checks each call by itself.

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        CompleteInMemorySaver.delete_for_runs(self, run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        CompleteInMemorySaver.copy_thread(self, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        CompleteInMemorySaver.prune(self, thread_ids, strategy=strategy)

    def _has_checkpoints(self, thread_id: str) -> bool:
        return thread_id in self.storage and any(self.storage[thread_id].values())

    def _outlines(self, thread_id: str) -> list[CheckpointOutline]:
        return [
            CheckpointOutline(thread_id, namespace, checkpoint_id, parent_id, self.serde.loads_typed(metadata))
            for namespace, checkpoints in self.storage.get(thread_id, {}).items()
            for checkpoint_id, (_, metadata, parent_id) in checkpoints.items()
        ]

    def _delete(self, gone: Iterable[CheckpointOutline]) -> None:
        """Delete these checkpoints, their writes, and the channels' values that no other checkpoint has."""
        changed: dict[tuple[str, str], set[str]] = {}
        for one in gone:
            del self.storage[one.thread_id][one.namespace][one.checkpoint_id]
            self.writes.pop((one.thread_id, one.namespace, one.checkpoint_id), None)
            changed.setdefault((one.thread_id, one.namespace), set()).add(one.checkpoint_id)
        for (thread_id, namespace), deleted in changed.items():
            left = self.storage[thread_id][namespace]
            needed = set()
            for checkpoint_id, (checkpoint, metadata, parent_id) in left.items():
                needed |= {*self.serde.loads_typed(checkpoint)["channel_versions"].items()}
                if parent_id in deleted:
                    left[checkpoint_id] = (checkpoint, metadata, None)
            for key in [key for key in self.blobs if key[:2] == (thread_id, namespace) and key[2:] not in needed]:
                del self.blobs[key]


class StampedInMemorySaver(RunStampMixin, CompleteInMemorySaver):
    """`CompleteInMemorySaver`, stamped."""
