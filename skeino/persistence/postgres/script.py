"""The set-up of a PostgreSQL database as SQL, for a role that makes tables and runs no application."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from skeino.persistence.postgres import schema
from skeino.persistence.registry import CheckpointerSpec

_HEAD: Final = """\
-- The schema of skeino-asgi, version {ours}, with the tables of langgraph-checkpoint-postgres {langgraphs}.
--
--     psql --set=ON_ERROR_STOP=1 --file=schema.sql "$DATABASE_URL"
--
-- Run it as often as you like: what is there already is left as it is. Not with --single-transaction, as CREATE INDEX
-- CONCURRENTLY goes into no transaction. The tables are made in the first schema of the search_path. The role of an
-- application with setup_schema=False needs
--
--     GRANT SELECT, INSERT, UPDATE, DELETE ON {written} TO …;
--     GRANT SELECT ON checkpoint_migrations, app_schema TO …;

SET client_min_messages = warning;

-- LangGraph's tables.
"""

_OURS: Final = """\
-- skeino's tables, in one transaction. The lock is the one that a starting application takes.
BEGIN;

DO $skeino$ BEGIN
    IF NOT pg_try_advisory_xact_lock(x'736B65696E6F'::bigint) THEN
        RAISE EXCEPTION 'An application sets up this database now: try again.';
    END IF;
END $skeino$;

{versions};
"""

_MIGRATION: Final = """
DO $skeino$ BEGIN
    IF COALESCE((SELECT max(version) FROM app_schema), 0) < {number} THEN
{statements}
    DELETE FROM app_schema;
    INSERT INTO app_schema (version, compatible_from) VALUES ({number}, {compatible_from});
    END IF;
END $skeino$;
"""


def schema_script(spec: CheckpointerSpec) -> str:
    """SQL for psql that makes all of the schema, from nothing or from any older version."""
    parts = [
        _HEAD.format(
            ours=len(schema.MIGRATIONS),
            langgraphs=version("langgraph-checkpoint-postgres"),
            written=", ".join(schema.written_tables()),
        )
    ]
    for number, migration in enumerate(AsyncPostgresSaver.MIGRATIONS):
        parts.append(f"{migration.strip().rstrip(';')};")
        parts.append(f"INSERT INTO checkpoint_migrations (v) VALUES ({number}) ON CONFLICT DO NOTHING;\n")
    parts.append(_OURS.format(versions=schema.VERSIONS))
    for number, (migration, compatible_from) in enumerate(
        zip(schema.MIGRATIONS, schema.COMPATIBLE_FROM, strict=True), 1
    ):
        parts.append(
            _MIGRATION.format(number=number, compatible_from=compatible_from, statements=migration.strip("\n").rstrip())
        )
    parts.append("COMMIT;\n")
    return "\n".join(parts)
