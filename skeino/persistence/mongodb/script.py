"""The set-up of a MongoDB database as commands, for a user who makes indexes and runs no application."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any, Final

from bson import json_util

from skeino.persistence.mongodb import schema
from skeino.persistence.mongodb.clients import CHECKPOINTS_DATABASE, METADATA_DATABASE, address_of
from skeino.persistence.registry import CheckpointerSpec

_HEAD: Final = """\
// The schema of skeino-asgi, version {ours}, with the indexes of langgraph-checkpoint-mongodb {langgraphs}.
//
//     mongosh "$MONGODB_URI" schema.js
//
// Run it as often as you like: what is there already is left as it is. The user needs readWrite on the database.

const checkpoints = db.getSiblingDB({checkpoints}), metadata = db.getSiblingDB({metadata});

// LangGraph's collections.
"""


def schema_script(spec: CheckpointerSpec) -> str:
    """Commands for mongosh that make all of the schema, from nothing or from any older version."""
    name = address_of(spec).database if spec.uri else None
    lines = [
        _HEAD.format(
            ours=len(schema.MIGRATIONS),
            langgraphs=version("langgraph-checkpoint-mongodb"),
            checkpoints=json.dumps(name or CHECKPOINTS_DATABASE),
            metadata=json.dumps(name or METADATA_DATABASE),
        )
    ]
    for collection, index in schema.LANGGRAPHS.items():
        lines.append(_command("checkpoints", {"createIndexes": collection, "indexes": [index.document]}))
    lines.append("\n// skeino's collections.")
    for number, commands in enumerate(schema.MIGRATIONS, 1):
        lines += [
            _command("metadata", _at_least(compatible_from=schema.COMPATIBLE_FROM[number - 1])),
            *(_command("metadata", command) for command in commands),
            _command("metadata", _at_least(version=number)),
        ]
    return "\n".join([*lines, ""])


def _at_least(**recorded: int) -> dict[str, Any]:
    """What records a version, unless a newer one is recorded."""
    change = {"$max": recorded, "$setOnInsert": {"step": 0, **_other(recorded)}}
    return {"update": schema.SCHEMA, "updates": [{"q": {"_id": "schema"}, "u": change, "upsert": True}]}


def _other(recorded: dict[str, int]) -> dict[str, int]:
    return {name: 0 for name in ("version", "compatible_from") if name not in recorded}


def _command(database: str, command: dict[str, Any]) -> str:
    return f"{database}.runCommand({json_util.dumps(command)});"
