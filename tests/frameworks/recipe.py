"""What a framework's builder is told, and what the application's own hooks note meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from skeino import StoreUnavailableError
from skeino_asgi import RunTracker

THREAD_PATH: Final = "/threads/{thread_id}"


@dataclass
class Recipe:
    """How to build an application, and its journal."""

    tracker: RunTracker
    native: bool = False
    """Add the middleware in the framework's own way."""
    start_up_fails: bool = False
    """The application's own start-up hook raises."""
    journal: list[str] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether the tracker is open on this event loop."""
        try:
            self.tracker.openings.here()
        except StoreUnavailableError:
            return False
        return True

    def start_up(self) -> None:
        """What the application's own start-up hook does."""
        self._note("start-up")
        if self.start_up_fails:
            raise RuntimeError("the application's own start-up failed")

    def shut_down(self) -> None:
        """What the application's own shutdown hook does."""
        self._note("shutdown")

    def _note(self, hook: str) -> None:
        self.journal.append(f"{hook}, tracker {'open' if self.is_open else 'closed'}")
