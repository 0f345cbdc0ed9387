"""uvicorn in processes of their own, several at a time."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from skeino import SkeinoSettings
from tests.servers.process import ServerFailedError, free_port

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0
"""Seconds to start, and to stop."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Way:
    """One of `serving.WAYS`, and where it keeps runs and state."""

    name: str
    settings: SkeinoSettings | None = None


@dataclass(frozen=True)
class Served:
    """A server that is up."""

    port: int
    pid: int
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Of requests, each a thread of its own."""


@contextmanager
def served(ways: Mapping[Key, Way]) -> Iterator[dict[Key, Served]]:
    """A server for each way: started together, since most of that is imports, and stopped together."""
    with ExitStack() as stack:
        starting = {}
        for key, way in ways.items():
            log = stack.enter_context(tempfile.TemporaryFile())
            port = free_port()
            process = _start(way, port, log)
            stack.callback(_stop, process)
            starting[key] = (process, port, log)
        yield {
            key: Served(_listening(process, port, log), process.pid) for key, (process, port, log) in starting.items()
        }
        for process, _, _ in starting.values():
            process.terminate()


def _start(way: Way, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("SKEINO_")}
    if way.settings is not None:
        environment["SKEINO_CHECKPOINTER_SCHEME"] = way.settings.checkpointer_scheme
        if way.settings.checkpointer_uri is not None:
            environment["SKEINO_CHECKPOINTER_URI"] = way.settings.checkpointer_uri
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving", way.name, str(port)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for the benchmark, which then stops its servers
    )


def _listening(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> int:
    """The port, as soon as the server takes connections there: then it has started."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return port
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise ServerFailedError(f"uvicorn did not start:\n{log.read().decode(errors='replace')[-2000:]}")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdin is not None
    process.stdin.close()
