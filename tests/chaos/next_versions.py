"""Versions of the schema that may come, made up: they go through the door through which real ones come."""

from typing import Any

from skeino.persistence.mongodb import schema as mongodb
from skeino.persistence.postgres import schema as postgres
from skeino.persistence.sqlite import schema as sqlite

ADDED = 2
"""How many there are: one that only adds something, and one that code before it cannot use."""

_SQL = (
    "ALTER TABLE app_runs ADD COLUMN note text; CREATE INDEX app_runs_note ON app_runs (note)",
    "UPDATE app_runs SET note = 'old' WHERE note IS NULL; CREATE TABLE app_notes (note text PRIMARY KEY)",
)
_COMMANDS = (
    ({"createIndexes": "app_runs", "indexes": [{"key": {"note": 1}, "name": "note"}]},),
    (
        {
            "update": "app_runs",
            "updates": [{"q": {"note": None}, "u": {"$set": {"note": "old"}}, "multi": True}],
        },
        {"createIndexes": "app_notes", "indexes": [{"key": {"note": 1}, "name": "note"}]},
    ),
)
_ADDED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "sqlite": (sqlite, _SQL),
    "postgres": (postgres, _SQL),
    "mongodb": (mongodb, _COMMANDS),
}


def install(scheme: str, number: int = ADDED, setattr: Any = setattr) -> None:
    """Let this process's code know the first so many of them; `setattr` may be pytest's, which undoes it."""
    schema, added = _ADDED[scheme]
    now = len(schema.MIGRATIONS)
    compatible_from = (schema.COMPATIBLE_FROM[-1], now + 2)
    setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, *added[:number]))
    setattr(schema, "COMPATIBLE_FROM", (*schema.COMPATIBLE_FROM, *compatible_from[:number]))
