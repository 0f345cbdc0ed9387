"""What was copied, and whether both sides agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

MAX_DIFFERENCES: Final = 1000

Phase = Literal["threads", "runs", "state", "verification"]


@dataclass(slots=True)
class Count:
    """How many there are at the source, and how many of them this copy has written."""

    found: int = 0
    copied: int = 0
    """Those that were at the target already are not counted."""


@dataclass(slots=True)
class CopyReport:
    """What `copy_persistence` has found, written and compared."""

    threads: Count = field(default_factory=Count)
    """Thread rows."""
    runs: Count = field(default_factory=Count)
    active_runs: int = 0
    """Runs that read `pending` or `running`: they belong to a process that should have been stopped."""
    threads_with_state: int = 0
    checkpoints: Count = field(default_factory=Count)
    pending_writes: Count = field(default_factory=Count)
    differences: list[str] = field(default_factory=list)
    """A sentence for each thing that is not at the target as it is at the source; at most 1000."""
    more_differences: int = 0
    """How many there are besides."""

    @property
    def verified(self) -> bool:
        """Whether all that is at the source is at the target, too."""
        return not self.differences

    def differ(self, sentence: str) -> None:
        """Add a difference."""
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(sentence)
        else:
            self.more_differences += 1

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {"verified": self.verified, **asdict(self)}


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far a copy is."""

    phase: Phase
    done: int
    total: int | None
    """None where it is not known beforehand."""


OnProgress = Callable[[CopyProgress], None]
