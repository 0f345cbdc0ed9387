"""Which schema a database has, and whether this code can use it. Versions go forward only.

A database records its version, and beside it the oldest version of the code that can use it. So old code goes on
with a schema that only had something added, as happens while a deployment replaces its processes one by one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Final

from skeino.errors import SchemaError

logger = logging.getLogger("skeino")

APPLY: Final = "python -m skeino schema --apply"
PRINT: Final = "python -m skeino schema --print"


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What a database has of the schema, beside what this code knows."""

    known: int
    """The version of this code."""
    version: int = 0
    """The version of the database; 0 if it has none."""
    compatible_from: int = 0
    """The oldest version of the code that can use the database."""
    missing: tuple[str, ...] = ()
    """Tables or collections that are not there, and what else of LangGraph's is unfinished."""
    subject: str = field(default="The database", repr=False)
    parts: str = field(default="the tables", repr=False)
    who: str = field(default="", repr=False)
    """Who can make them, for messages: " as a role that may CREATE"."""

    @property
    def refused(self) -> str | None:
        """Why this code must keep away, in a sentence."""
        if self.compatible_from <= self.known:
            return None
        return (
            f"{self.subject} has schema version {self.version}, which code of version {self.compatible_from} and later "
            f"can use, and this skeino-asgi knows {self.known}: install a newer one."
        )

    @property
    def lacking(self) -> str | None:
        """What is to be made first, in a sentence."""
        if self.missing:
            lacks = f"lacks {self.parts} {', '.join(self.missing)}"
        elif self.version < self.known:
            lacks = f"has an older schema, version {self.version} of {self.known}"
        else:
            return None
        return f"{self.subject} {lacks}: run {APPLY}, or start once with setup_schema=True{self.who}."

    def is_complete(self) -> bool:
        """Whether this code finds all that it needs.

        Raises:
            SchemaError: the schema is newer than this code, and not compatible with it.
        """
        if self.refused:
            raise SchemaError(self.refused)
        if self.version > self.known:
            logger.info(
                "%s has schema version %d, which this code of version %d can use.",
                self.subject,
                self.version,
                self.known,
            )
        return self.lacking is None

    def verify(self) -> None:
        """Check that this code finds all that it needs.

        Raises:
            SchemaError: something is missing, or older, or newer and not compatible.
        """
        if not self.is_complete():
            raise SchemaError(self.lacking)

    def verify_made(self) -> None:
        """As `verify`, when all that could be made has been.

        Raises:
            SchemaError: something is missing that the recorded version says is there.
        """
        if not self.is_complete():
            raise SchemaError(
                f"{self.subject} says that it has schema version {self.version}, but lacks {', '.join(self.missing)}: "
                "restore them; or, if nothing is to be kept, drop all app_… there, and start again."
            )

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "version": self.version,
            "compatible_from": self.compatible_from,
            "known": self.known,
            "missing": list(self.missing),
        }
