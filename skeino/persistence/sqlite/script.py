"""The set-up of a SQLite file as SQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib.metadata import version
from textwrap import dedent
from typing import Final

from langgraph.checkpoint.sqlite import SqliteSaver

from skeino.persistence.registry import CheckpointerSpec
from skeino.persistence.sqlite import schema

_HEAD: Final = """\
-- The schema of skeino-asgi, version {ours}, with the tables of langgraph-checkpoint-sqlite {langgraphs}.
--
--     (umask 077 && sqlite3 -bail skeino.db <schema.sql)
--
-- For a new file: if the tables are there already, nothing is changed. SQLite has no conditional statements; to bring
-- an older file up to date run python -m skeino schema --apply.

PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;

-- LangGraph's tables.
"""


def schema_script(spec: CheckpointerSpec) -> str:
    """SQL for the sqlite3 shell that makes all of the schema in a new file, in one transaction."""
    parts = [_HEAD.format(ours=len(schema.MIGRATIONS), langgraphs=version("langgraph-checkpoint-sqlite"))]
    parts += [f"{dedent(statement)};\n" for statement in _langgraphs()]
    parts.append(f"-- skeino's tables.\n{schema.VERSIONS.replace('IF NOT EXISTS ', '')};")
    parts += [dedent(migration) for migration in schema.MIGRATIONS]
    newest = len(schema.MIGRATIONS)
    parts.append(
        f"INSERT INTO app_schema (version, compatible_from) VALUES ({newest}, {schema.COMPATIBLE_FROM[newest - 1]});\n"
        "COMMIT;\n"
    )
    return "\n".join(parts)


def _langgraphs() -> list[str]:
    """What LangGraph's saver makes, as the database tells it: its own statements are no constants."""
    with closing(sqlite3.connect(":memory:")) as connection:
        SqliteSaver(connection).setup()
        found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid").fetchall()
    return [statement for (statement,) in found]
