"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

SAVERS = ("langgraph", "langgraph-checkpoint-sqlite", "langgraph-checkpoint-postgres", "langgraph-checkpoint-mongodb")
DISTRIBUTIONS = {
    "middleware": ("langgraph", "starlette", "asgi-correlation-id", "opentelemetry-instrumentation-asgi"),
    "runs": ("aiosqlite", "psycopg", "psycopg-pool", "pymongo"),
    "savers": SAVERS,
    "histories": SAVERS,
    "sizes": (*SAVERS, "psycopg", "pymongo"),
    "tables": ("aiosqlite", "psycopg", "pymongo"),
    "served": ("uvicorn", "uvloop", "httptools", "starlette", "langgraph", "langgraph-checkpoint-postgres", "psycopg"),
    "network": ("langgraph", "langgraph-checkpoint-postgres", "psycopg", "psycopg-pool"),
    "memory": ("uvicorn", "uvloop", "starlette", "langgraph", "psycopg", "pymongo", "aiosqlite"),
    "disk": (*SAVERS, "aiosqlite", "psycopg", "pymongo"),
    "operations": (*SAVERS, "aiosqlite", "psycopg", "pymongo"),
    "growth": (*SAVERS, "aiosqlite", "psycopg", "pymongo"),
}
"""What each topic's figures depend on."""


def described(topic: str) -> str:
    """The processor, its cores, the system, Python and the versions that matter, in one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in DISTRIBUTIONS[topic])
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}; {versions}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"
