"""What `python -m skeino_asgi demo` says: where it serves, where the data lies, and why it does not start."""

from __future__ import annotations

import shlex
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.process import SECONDS, events_of, refused_demo, running_demo, text_of
from tests.http_client import httpx


def test_it_says_where_the_page_and_the_data_are(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        assert f"Page  {demo.url}\n" in demo.output
        assert f"Data  {tmp_path / 'skeino-demo.db'} (SQLite)\n" in demo.output
        assert "<title>" in httpx.get(demo.url, timeout=SECONDS).text
        assert stat.S_IMODE((tmp_path / "skeino-demo.db").stat().st_mode) == 0o600


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_curl_line_works(tmp_path: Path) -> None:
    with running_demo(tmp_path, "--scheme", "memory") as demo:
        line = next(line for line in demo.output.splitlines() if "curl -N" in line).partition("Try")[2]
        done = subprocess.run([*shlex.split(line), "-sS"], capture_output=True, text=True, timeout=SECONDS, check=True)
    events = events_of(done.stdout)
    assert "“Hello”" in text_of(events)
    assert events[-1] == ("end", {})


def test_control_c_ends_it_without_a_word(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        assert demo.stop() == 0
        assert demo.errors == ""


def test_memory_says_that_nothing_stays(tmp_path: Path) -> None:
    with running_demo(tmp_path, "--scheme", "memory") as demo:
        assert "in memory, and gone when this process ends" in demo.output
        assert text_of(demo.turn(thread_id="t", message="Hello")).startswith("You wrote “Hello”")
        assert demo.settled_runs("t", 1)[0]["status"] == "success"
        assert not list(tmp_path.glob("*.db"))


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused_demo(tmp_path, "--port", str(port))
    assert said == f"Port {port} of 127.0.0.1 is in use: stop what uses it, or choose another --port.\n"


@pytest.mark.parametrize(("without", "extra"), [("uvicorn", "skeino-asgi[demo]"), ("aiosqlite", "skeino-asgi[sqlite]")])
def test_a_missing_extra_is_named_in_one_sentence(tmp_path: Path, without: str, extra: str) -> None:
    said = refused_demo(tmp_path, without=[without])
    assert f"'{without}'" in said
    assert f"pip install '{extra}'" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--db", "absent/file.db"], "does not exist"),
        (["--db", ":memory:"], "checkpointer_scheme='memory'"),
        (["--scheme", "postgress"], "did you mean 'postgres'"),
        (["--scheme", "postgres"], "checkpointer_uri"),
        (["--scheme", "memory", "--db", "file.db"], "--db"),
        (["--host", "192.0.2.1"], "Cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, options: list[str], expected: str) -> None:
    said = refused_demo(tmp_path, *options)
    assert expected in said
    assert said.count("\n") == 1


def test_an_unreachable_database_is_one_line_without_the_password(tmp_path: Path) -> None:
    said = refused_demo(
        tmp_path, "--scheme", "postgres", "--uri", "postgresql://someone:hunter2@127.0.0.1:1/db?connect_timeout=2"
    )
    assert said.count("\n") == 1
    assert "hunter2" not in said


def test_importing_the_package_does_not_load_the_graph_library() -> None:
    program = "import sys, skeino_asgi; sys.exit('langgraph.graph' in sys.modules or 'uvicorn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=SECONDS, check=False).returncode == 0
