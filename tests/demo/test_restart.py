"""Stop it, start it again: all is still there."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.demo.process import SECONDS, Demo, eventually, running_demo, text_of
from tests.http_client import httpx


def test_sqlite_keeps_all(tmp_path: Path) -> None:
    _stays_after_a_restart(tmp_path, "--db", "kept.db")


def test_mongodb_keeps_all(tmp_path: Path, mongodb_uri: str) -> None:
    output = _stays_after_a_restart(tmp_path, "--scheme", "mongodb", "--uri", mongodb_uri)
    assert mongodb_uri not in output


def test_postgres_keeps_all(tmp_path: Path, postgres_dsn: str) -> None:
    output = _stays_after_a_restart(tmp_path, "--scheme", "postgres", "--uri", postgres_dsn)
    assert postgres_dsn not in output


def test_control_c_lets_a_turn_come_to_its_end(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        with _turn_in_progress(demo) as lines:
            demo.process.send_signal(signal.SIGINT)
            assert "event: end" in list(lines)
        assert demo.process.wait(SECONDS) == 0
    with running_demo(tmp_path) as demo:
        assert demo.settled_runs("t", 1)[0]["status"] == "success"


def test_a_second_control_c_interrupts_the_turn(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        with _turn_in_progress(demo):
            demo.process.send_signal(signal.SIGINT)
            eventually(lambda: not demo.accepts_connections)
            assert demo.stop() == 0
        assert demo.errors == ""
    with running_demo(tmp_path) as demo:
        (run,) = demo.settled_runs("t", 1)
        assert run["status"] == "interrupted"


@contextmanager
def _turn_in_progress(demo: Demo) -> Iterator[Iterator[str]]:
    """The lines of a turn's stream that are still to come."""
    body = {"thread_id": "t", "message": "Hello"}
    with httpx.stream("POST", f"{demo.url}/chat", json=body, timeout=SECONDS) as response:
        lines = response.iter_lines()
        assert next(line for line in lines if line == "event: token")
        yield lines


def _stays_after_a_restart(folder: Path, *options: str) -> str:
    with running_demo(folder, *options) as demo:
        demo.turn(thread_id="answered", message="Remember the number 42.")
        demo.turn(thread_id="failed", message="Please fail.")
        demo.turn(thread_id="waits", message="Publish it, but ask me first.")
        before = _everything(demo)
        assert demo.stop() == 0
        assert "Traceback" not in demo.errors
    with running_demo(folder, *options) as demo:
        assert _everything(demo) == before
        assert "“Remember the number 42”" in text_of(demo.turn(thread_id="answered", message="Which one?"))
        assert "went ahead" in text_of(demo.turn(thread_id="waits", resume="approve"))
        resumed, paused = demo.settled_runs("waits", 2)
        assert resumed["worker_id"] != paused["worker_id"]
        assert demo.stop() == 0
        return demo.output


def _everything(demo: Demo) -> dict[str, Any]:
    for thread_id in ("answered", "failed", "waits"):
        demo.settled_runs(thread_id, 1)
    return {
        path: demo.get(path)
        for path in (
            "/threads",
            *(f"/threads/{one}{kind}" for one in ("answered", "failed", "waits") for kind in ("", "/runs", "/history")),
        )
    }
