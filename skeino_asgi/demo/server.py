"""The demo's command line: its options, the lines it prints, and uvicorn."""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import logging
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import uvicorn

from skeino import SkeinoError, SkeinoSettings
from skeino.persistence import open_persistence
from skeino_asgi.demo.app import create_app
from skeino_asgi.demo.graph import IntendedError

DEFAULT_PORT: Final = 8000
DEFAULT_FILE: Final = "skeino-demo.db"
SHUTDOWN_SECONDS: Final = 5
"""How long Ctrl-C waits for a turn that is being streamed; then its run ends as interrupted."""


def main(arguments: Sequence[str]) -> int:
    """Serve until interrupted; returns 0, or 2 when there is something to put right first, said in one line."""
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
        # Opened once beforehand: what is wrong is then said here, and not in the middle of a server's log.
        asyncio.run(_open_and_close(settings))
        listener = _listen(options.host, options.port)
    except (SkeinoError, _RefusedError) as exc:
        print(exc, file=sys.stderr)
        return 2
    config = uvicorn.Config(
        create_app(settings),
        lifespan="on",
        log_level="warning",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    server = _DemoServer(config, _announcement(options, settings, listener.getsockname()[1]))
    logging.getLogger("uvicorn.error").addFilter(server.filter)
    with listener, suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
        server.run([listener])
    return 0


class _DemoServer(uvicorn.Server):
    """Says where it serves once it does, and logs what went wrong, but not what was asked for."""

    def __init__(self, config: uvicorn.Config, announcement: str) -> None:
        super().__init__(config)
        self._announcement = announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._announcement, flush=True)

    def filter(self, record: logging.LogRecord) -> bool:
        """Log a turn that was asked to fail as one line, and a second Ctrl-C, which cuts off what runs, not at all."""
        exc = record.exc_info[1] if record.exc_info else None
        if isinstance(exc, IntendedError):
            record.exc_info = None
            record.msg, record.args = "A turn failed, as it was asked to: its run ended as error.", ()
        return not self.force_exit


class _RefusedError(Exception):
    """The options cannot work; the message is for the person who typed them."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m skeino_asgi demo",
        description="Serve a chat page over a LangGraph graph, with the thread's runs and checkpoints beside it. "
        "The model needs no key and no network.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help="the port, 0 for any free one (default %(default)s)"
    )
    parser.add_argument("--db", metavar="FILE", help=f"the SQLite file to keep everything in (default {DEFAULT_FILE})")
    parser.add_argument(
        "--scheme", help="another backend: memory, postgres, mongodb (default SKEINO_CHECKPOINTER_SCHEME, sqlite)"
    )
    parser.add_argument("--uri", help="its connection string; SKEINO_CHECKPOINTER_URI keeps it out of the process list")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: choose a number from 0 to 65535.")
    return int(text)


def _settings(options: argparse.Namespace) -> SkeinoSettings:
    if options.scheme is options.uri is options.db is None:
        surrounding = SkeinoSettings()
        if "checkpointer_scheme" in surrounding.model_fields_set:
            return surrounding
    scheme = options.scheme or "sqlite"
    if options.db is not None and (options.uri is not None or not _is_sqlite(scheme)):
        raise _RefusedError("--db names a SQLite file: use it without --scheme and --uri, or leave it out.")
    if options.uri is not None:
        return SkeinoSettings(checkpointer_scheme=scheme, checkpointer_uri=options.uri)
    if _is_sqlite(scheme):
        return SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=options.db or DEFAULT_FILE)
    return SkeinoSettings(checkpointer_scheme=scheme)


def _is_sqlite(scheme: str) -> bool:
    return scheme.strip().lower() in ("sqlite", "sqlite3")


async def _open_and_close(settings: SkeinoSettings) -> None:
    async with open_persistence(settings):
        pass


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port in use is noticed before the server starts.

    Raises:
        _RefusedError: the address cannot be listened on.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise _RefusedError(
                f"Port {port} of {host} is in use: stop what uses it, or choose another --port."
            ) from exc
        raise _RefusedError(f"Cannot listen on {host}, port {port}: {exc.strerror or exc}.") from exc


def _announcement(options: argparse.Namespace, settings: SkeinoSettings, port: int) -> str:
    everywhere = options.host in ("", "0.0.0.0", "::")
    host = "127.0.0.1" if everywhere else f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{port}"
    body = json.dumps({"message": "Hello"})
    scheme = settings.checkpointer_scheme.lower()
    if scheme == "memory":
        data = "in memory, and gone when this process ends"
    elif _is_sqlite(scheme):
        path = settings.checkpointer_uri or ""
        data = f"{path if '://' in path else Path(path).expanduser().absolute()} (SQLite)"
    else:
        data = f"in the {scheme} database of the connection string"
    return "\n".join(
        [
            "The skeino demo is ready.",
            "",
            f"  Page  {url}",
            f"  Try   curl -N {url}/chat -H 'Content-Type: application/json' -d '{body}'",
            f"  Data  {data}",
            "",
            *(["Everybody who reaches this machine can read and write it."] if everywhere else []),
            "Ctrl-C stops it." if scheme == "memory" else "Ctrl-C stops it; start it again, and all is still there.",
        ]
    )
