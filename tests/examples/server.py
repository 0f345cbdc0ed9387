"""An example on a real uvicorn, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.servers.process import free_port

ROOT = Path(__file__).parents[2]


@contextmanager
def serving(module: str, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The URL of `uvicorn examples.<module>:app`, started in `folder` and stopped, in order, at the end."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "error", "-m", "uvicorn", f"examples.{module}:app", "--port", str(port)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SKEINO_")}
    log = folder / f"{module}.log"
    with log.open("ab") as output:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, "PYTHONPATH": str(ROOT), **environment},
            stdout=output,
            stderr=output,
        )
    try:
        _wait(server, port, log)
        yield url
        server.terminate()
        assert server.wait(20) in (0, -15), log.read_text()  # uvicorn raises the signal again once it has shut down
        assert "Application shutdown complete" in log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        server.kill()
        server.wait()


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            return
