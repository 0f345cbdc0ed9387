"""The README's words about the demo, tried on the demo."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks_of
from tests.http_client import httpx
from tests.servers.process import free_port

OPTIONS = re.findall(r"`(?:make demo DEMO_ARGS=\")?((?:--\w+ [\w.…]+ ?)+)\"?`", (ROOT / "README.md").read_text())


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "skeino_asgi", "demo", "--port", str(port)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if "Ctrl-C stops it" in line:
                break
        yield f"http://127.0.0.1:{port}"
        assert (tmp_path / "skeino-demo.db").is_file()
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()


def test_its_curl_lines_answer(demo: str) -> None:
    (lines,) = (block.code.splitlines() for block in blocks_of(ROOT / "README.md", "sh") if "curl" in block.code)
    (_, _, first, *more), *rest = (shlex.split(line, comments=True) for line in lines)
    assert first == "http://127.0.0.1:8000/chat"
    turn = httpx.post(
        first.replace("http://127.0.0.1:8000", demo),
        headers=dict([more[more.index("-H") + 1].split(": ")]),
        content=more[more.index("-d") + 1],
        timeout=20,
    )
    turn.raise_for_status()
    run_id = turn.headers["x-run-id"]

    threads, runs, history = (httpx.get(words[1].replace("http://127.0.0.1:8000", demo)).json() for words in rest)
    assert [thread["thread_id"] for thread in threads] == ["t1"]
    (run,) = runs
    assert run["run_id"] == run_id
    assert {"status", "duration", "error", "checkpoint_count"} <= set(run)
    assert {checkpoint["run_id"] for checkpoint in history} == {run_id}


@pytest.mark.parametrize(
    ("message", "run_status", "thread_status"),
    [("please fail", "error", "error"), ("ask me first", "success", "interrupted")],
)
def test_the_words_that_do_something_else(demo: str, message: str, run_status: str, thread_status: str) -> None:
    httpx.post(f"{demo}/chat", json={"message": message, "thread_id": "t1"}, timeout=20)

    assert httpx.get(f"{demo}/threads/t1/runs").json()[0]["status"] == run_status
    assert httpx.get(f"{demo}/threads/t1").json()["status"] == thread_status


def test_its_options_exist() -> None:
    command = [sys.executable, "-m", "skeino_asgi", "demo", "--help"]
    shown = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    ).stdout
    named = {word for options in OPTIONS for word in options.split() if word.startswith("--")}
    assert named == {"--port", "--db", "--scheme", "--uri"}
    assert all(option in shown for option in named)
