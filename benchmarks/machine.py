"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

DISTRIBUTIONS = ("langgraph", "starlette", "asgi-correlation-id", "opentelemetry-instrumentation-asgi")


def described() -> str:
    """The processor, its cores, the system, Python and the versions that matter, in one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in DISTRIBUTIONS)
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
