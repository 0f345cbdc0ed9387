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
            _command("metadata", _usable_from(schema.COMPATIBLE_FROM[number - 1])),
            *(_command("metadata", command) for command in commands),
            _command("metadata", _made(number)),
        ]
    return "\n".join([*lines, ""])


def _usable_from(version: int) -> dict[str, Any]:
    """What keeps code away that cannot use the version; as a migration does, before anything is changed."""
    change = {"$max": {"compatible_from": version}, "$setOnInsert": {"version": 0, "step": 0}}
    return _recorded({"_id": "schema"}, change, upsert=True)


def _made(version: int) -> dict[str, Any]:
    """What records the version, unless it or a newer one is recorded."""
    older = {"_id": "schema", "version": {"$lt": version}}
    return _recorded(older, {"$set": {"version": version, "step": 0}}, upsert=False)


def _recorded(query: dict[str, Any], change: dict[str, Any], *, upsert: bool) -> dict[str, Any]:
    return {"update": schema.SCHEMA, "updates": [{"q": query, "u": change, "upsert": upsert}]}


def _command(database: str, command: dict[str, Any]) -> str:
    return f"{database}.runCommand({json_util.dumps(command)});"
