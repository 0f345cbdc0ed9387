"""The demo as people start it: a process of its own, on a port of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import skeino_asgi
from tests.http_client import httpx
from tests.servers.process import free_port

T = TypeVar("T")

SECONDS = 30.0
"""The bound of every wait."""


class Demo:
    """A running demo."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, output: Path, errors: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process = process
        self._output = output
        self._errors = errors

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    @property
    def accepts_connections(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS).close()
        except OSError:
            return False
        return True

    def get(self, path: str) -> Any:
        response = httpx.get(f"{self.url}{path}", timeout=SECONDS)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, body: object) -> httpx.Response:
        return httpx.post(f"{self.url}/chat", json=body, timeout=SECONDS)

    def turn(self, **body: str) -> list[tuple[str, Any]]:
        """One turn; its events."""
        response = self.post(body)
        assert response.status_code == 200, response.text
        return events_of(response.text)

    def settled_runs(self, thread_id: str, number: int) -> list[dict[str, Any]]:
        """The thread's runs, once there are that many and all have ended."""

        def settled() -> list[dict[str, Any]] | None:
            runs: list[dict[str, Any]] = self.get(f"/threads/{thread_id}/runs")
            return runs if len(runs) == number and all(run["finished_at"] for run in runs) else None

        return eventually(settled)

    def stop(self) -> int:
        """Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SECONDS)


@contextmanager
def running_demo(folder: Path, *options: str) -> Iterator[Demo]:
    """The demo, started in that folder."""
    port = free_port()
    output, errors = folder / f"output-{port}", folder / f"errors-{port}"
    command = [sys.executable, "-m", "skeino_asgi", "demo", "--port", str(port), *options]
    with (
        output.open("wb") as out,
        errors.open("wb") as err,
        subprocess.Popen(command, cwd=folder, env=_environment(), stdout=out, stderr=err) as process,
    ):
        demo = Demo(process, port, output, errors)
        try:
            eventually(lambda: "Ctrl-C" in demo.output or process.poll() is not None)
            assert process.poll() is None, demo.errors
            yield demo
        finally:
            process.kill()


def refused_demo(folder: Path, *options: str, without: Sequence[str] = ()) -> str:
    """What a demo that does not start says, with packages that are not installed; its exit status is 2."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({list(without)!r})); "
        f"from skeino_asgi.__main__ import main; sys.exit(main({['demo', *options]!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def events_of(stream: str) -> list[tuple[str, Any]]:
    """The events of a stream of server-sent events, each with its data."""
    found = []
    for block in stream.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def text_of(events: list[tuple[str, Any]]) -> str:
    """The words of a turn's answer."""
    return "".join(data["text"] for name, data in events if name == "token")


def eventually(look: Callable[[], T | None]) -> T:
    """What `look` returns as soon as that is true."""
    deadline = time.monotonic() + SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return found


def _environment() -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("SKEINO_")}
    return {**kept, "PYTHONPATH": str(Path(skeino_asgi.__file__).parents[1])}
