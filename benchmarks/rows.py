"""What plain statements write for a run: the same columns, and as much in them, as skeino's own."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from skeino.persistence import RunFinish

WORKER = "11111111-2222-7333-8444-555555555555"
KWARGS = {"method": "POST", "path": "/chat"}


def run_id(number: int) -> str:
    """Ids that sort by time, as UUIDv7 do."""
    return f"{number >> 16:08x}-{number & 0xFFFF:04x}-7000-8000-000000000000"


def thread_id(number: int) -> str:
    """Every run works on a thread of its own."""
    return f"thread-{number:020}"


def beginning(number: int) -> dict[str, Any]:
    """The parameters of the statements with which a run begins."""
    return {
        "run_id": run_id(number),
        "thread_id": thread_id(number),
        "worker_id": WORKER,
        "kwargs": json.dumps(KWARGS),
        "now": datetime.now(UTC),
    }


def end(number: int) -> dict[str, Any]:
    """The parameters of the statements with which a run ends."""
    return {"run_id": run_id(number), "thread_id": thread_id(number), "worker_id": WORKER, "now": datetime.now(UTC)}


def finish(number: int) -> RunFinish:
    """The same, for a metadata store."""
    return {
        "run_id": run_id(number),
        "worker_id": WORKER,
        "status": "success",
        "finished_at": datetime.now(UTC),
        "thread_id": thread_id(number),
        "thread_status": "idle",
        "error": None,
        "http_status": 200,
        "metadata": {},
        "checkpoint_count": 5,
        "first_checkpoint_id": None,
        "last_checkpoint_id": None,
        "paused": False,
    }
