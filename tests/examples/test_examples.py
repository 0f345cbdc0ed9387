"""Every example runs as its header says, on a real server, and shows what its header shows."""

import ast
import importlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.examples.server import ROOT, serving
from tests.examples.transcript import steps_of

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
SQLITE = sorted(path.stem for path in (ROOT / "examples").glob("*_sqlite.py"))
DURABLE = {"custom_backend", "fastapi_postgres", *SQLITE}


def header_of(example: str) -> str:
    header = ast.get_docstring(ast.parse((ROOT / "examples" / f"{example}.py").read_text()), clean=False)
    assert header is not None
    return header


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_header_says_purpose_installation_command_and_what_to_expect(example: str) -> None:
    header = header_of(example)

    for word in ("Purpose", "Install   pip install", "Run", f"uvicorn examples.{example}:app", "Expect"):
        assert word in header
    assert len(steps_of(header)) == (2 if example in DURABLE else 1)
    assert all(step.output for steps in steps_of(header) for step in steps)


@pytest.mark.parametrize("example", ["bare_asgi_memory", "blacksheep_memory", "custom_backend"])
def test_the_example_shows_what_its_header_shows(example: str, tmp_path: Path) -> None:
    act(example, tmp_path, {})


def test_the_postgres_example_shows_what_its_header_shows(tmp_path: Path, postgres_dsn: str) -> None:
    act(
        "fastapi_postgres",
        tmp_path,
        {"SKEINO_CHECKPOINTER_SCHEME": "postgres", "SKEINO_CHECKPOINTER_URI": postgres_dsn},
    )


@pytest.mark.parametrize("example", SQLITE)
def test_a_sqlite_example_shows_what_its_header_shows_and_ends_every_run(example: str, tmp_path: Path) -> None:
    act(example, tmp_path, {})

    with closing(sqlite3.connect(tmp_path / "skeino.db")) as connection:
        assert connection.execute("SELECT DISTINCT status FROM app_runs").fetchall() == [("success",)]


def test_each_message_on_the_fastapi_examples_websocket_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = importlib.import_module("examples.fastapi_sqlite")
    with TestClient(example.app, headers={"X-User": "ada"}) as client:
        with client.websocket_connect("/threads/t1/talk") as socket:
            for number, text in ((1, "Hello"), (2, "Yes")):
                socket.send_text(text)
                assert socket.receive_text() == f"Your message {number} has {len(text)} letters."
        assert client.get("/threads/t1").json() == {"status": "idle", "runs": ["success", "success"]}
        with (
            pytest.raises(WebSocketDisconnect) as closed,
            client.websocket_connect("/threads/t1/talk", headers={"X-User": "bob"}),
        ):
            pass
        assert closed.value.code == 1008


def act(example: str, folder: Path, environment: dict[str, str]) -> None:
    """Start the example, do what the header does, and start it again where the header says so."""
    for steps in steps_of(header_of(example)):
        assert steps
        with serving(example, folder, environment) as url:
            for step in steps:
                step.act(url)
