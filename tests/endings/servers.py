"""The servers, and one of them as a process: started, signalled, killed, never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tests.http_client import httpx
from tests.servers.process import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
"""Seconds for what a busy machine does slowly; nothing waits that long when all is well."""

T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """A server: how its command line says what the endings need."""

    name: str
    module: str
    options: Sequence[str]
    port: Sequence[str]
    grace: Sequence[str] = ()
    """How long a graceful shutdown waits for requests, in whole seconds."""
    lifespan: Sequence[str] | None = ()
    """What switches the lifespan on; None where there is none."""
    no_lifespan: Sequence[str] | None = None
    """What switches it off; None where the application has to refuse it."""
    killed: str | None = None
    """What its log says when it had to kill its worker."""

    def command(self, port: int, *, grace: int, lifespan: bool, more: Sequence[str] = ()) -> list[str]:
        chosen = self.lifespan if lifespan else self.no_lifespan
        words = [*self.options, *self.port, *self.grace, *(chosen or ()), *more]
        filled = [word.format(port=port, grace=grace) for word in words]
        return [sys.executable, "-m", self.module, *filled, "tests.endings.application:app"]


UVICORN = Server(
    name="uvicorn (asyncio, h11)",
    module="uvicorn",
    options=("--loop", "asyncio", "--http", "h11", "--no-access-log"),
    port=("--port", "{port}"),
    grace=("--timeout-graceful-shutdown", "{grace}"),
    lifespan=("--lifespan", "on"),
    no_lifespan=("--lifespan", "off"),
)
UVLOOP = replace(
    UVICORN,
    name="uvicorn (uvloop, httptools)",
    options=("--loop", "uvloop", "--http", "httptools", "--no-access-log"),
)
HYPERCORN = Server(
    name="hypercorn",
    module="hypercorn",
    options=("--worker-class", "asyncio", "--workers", "1"),
    port=("--bind", "127.0.0.1:{port}"),
    grace=("--graceful-timeout", "{grace}"),
)
GRANIAN = Server(
    name="granian",
    module="granian",
    options=("--workers", "1", "--no-respawn-failed-workers", "--task-impl", "asyncio"),
    port=("--port", "{port}"),
    grace=("--workers-kill-timeout", "{grace}"),
    lifespan=("--interface", "asgi"),
    no_lifespan=("--interface", "asginl"),
    killed="Killing worker",
)
DAPHNE = Server(
    name="daphne",
    module="daphne",
    options=("-v", "0"),
    port=("--port", "{port}"),  # it cancels requests at once, without any grace
    lifespan=None,
)
SERVERS = (UVICORN, UVLOOP, HYPERCORN, GRANIAN, DAPHNE)


@dataclass
class Running:
    """A server's process, with its folder: the SQLite file, the events, the gates, the log."""

    server: Server
    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    worker: int = 0
    """The process that runs the application: the server's own, or its child."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def ask_to_stop(self, number: signal.Signals) -> None:
        """SIGTERM goes to the server, as a supervisor sends it; SIGINT to all its processes, as a terminal does."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def kill_worker(self) -> None:
        os.kill(self.worker, signal.SIGKILL)

    def wait(self) -> None:
        """Until it has ended by itself."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.server.name} did not stop:\n{self.log}") from None


@contextmanager
def running(
    server: Server,
    folder: Path,
    *,
    grace: int = 10,
    lifespan: bool = True,
    more: Sequence[str] = (),
) -> Iterator[Running]:
    """Start a server in that folder; whatever is left of it at the end is killed."""
    port = free_port()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            server.command(port, grace=grace, lifespan=lifespan, more=more),
            cwd=folder,
            env=_environment(folder, lifespan=lifespan or server.no_lifespan is not None),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    running = Running(server, folder, port, process)
    try:
        eventually(lambda: running.ended or running.listens, running)
        assert not running.ended, running.log
        running.worker = int(httpx.get(f"{running.url}/ready", timeout=PATIENCE).text)
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def eventually(look: Callable[[], T | None], running: Running, *, seconds: float = PATIENCE) -> T:
    """What `look` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"it did not come true in time; the log:\n{running.log}"
        time.sleep(0.01)
    return found


def _environment(folder: Path, *, lifespan: bool) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SKEINO_", "GRANIAN_"))}
    added = {"PYTHONPATH": str(ROOT), "ENDINGS_FOLDER": str(folder), "PYTHONUNBUFFERED": "1"}
    return {**kept, **added, "ENDINGS_LIFESPAN": "accepted" if lifespan else "refused"}
