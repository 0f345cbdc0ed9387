"""Every ending on every server: the run's row says what happened."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.endings.client import checked, client_of, rows_of
from tests.endings.endings import ENDINGS, Ending, Row
from tests.endings.page import PAGE, tables
from tests.endings.servers import PATIENCE, ROOT, SERVERS, Running, Server, eventually, running
from tests.http_client import httpx

NAMED = [(f"{title}: {ending.name}", ending) for title, group in ENDINGS.items() for ending in group]
TOGETHER = [pytest.param(ending, id=name) for name, ending in NAMED if ending.leaves_the_server_alone]
ALONE = [
    pytest.param(server, ending, id=f"{server.name}: {name}")
    for name, ending in NAMED
    for server in ending.servers
    if not ending.leaves_the_server_alone
]

tokens = (f"token{number}" for number in count())


@pytest.fixture(scope="module", params=SERVERS, ids=lambda server: server.name)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One process for all endings that it survives."""
    with running(request.param, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.mark.parametrize("ending", TOGETHER)
def test_a_run_ends_as_its_request_did(server: Running, ending: Ending) -> None:
    expected = ending.row_on(server.server)
    path = f"/{ending.configuration}/{ending.behaviour}/{next(tokens)}"
    with client_of(server, path, reaches_the_handler=expected.status is not None) as client:
        ending.client(client)
        if expected.status is None:
            assert client.rows() == []
        else:
            eventually(client.has_ended, server)
            (row,) = client.rows()
            assert Row(*row) in ending.rows_on(server.server)


def test_a_server_stops_in_order_after_all_that(server: Running) -> None:
    server.ask_to_stop(signal.SIGTERM)
    server.wait()
    assert "running" not in [row[0] for row in rows_of(server)]
    assert troubles_of(server.log) == []
    if server.server.killed is not None:
        assert server.server.killed not in server.log


@pytest.mark.parametrize(("kind", "ending"), ALONE)
def test_a_run_ends_as_its_server_did(kind: Server, ending: Ending, tmp_path: Path) -> None:
    expected = ending.row_on(kind)
    path = f"/{ending.configuration}/{ending.behaviour}/{next(tokens)}"
    with (
        running(kind, tmp_path, grace=ending.grace, lifespan=ending.lifespan, more=ending.more) as server,
        client_of(server, path, reaches_the_handler=expected.status is not None) as client,
    ):
        ending.client(client)
        if ending.stop is not None:
            ending.stop(client)
            server.wait()
        else:
            eventually(client.has_ended, server)
        rows = [Row(*row) for row in client.rows()]
        assert len(rows) == (expected.status is not None)
        assert all(row in ending.rows_on(kind) for row in rows)
        assert len(rows_of(server)) == (expected.status is not None)
        assert troubles_of(server.log) == []
        if kind.killed is not None and expected.status != "running":
            assert kind.killed not in server.log


@pytest.mark.parametrize("kind", SERVERS, ids=lambda server: server.name)
def test_what_was_acknowledged_survives_the_death_of_its_worker(kind: Server, tmp_path: Path) -> None:
    answered = [f"/continue/answers_200/{next(tokens)}" for _ in range(20)]
    working = f"/continue/checkpoints/{next(tokens)}"
    with running(kind, tmp_path) as server, client_of(server, working) as client:
        for path in answered:
            assert httpx.post(f"{server.url}{path}", timeout=PATIENCE).status_code == 200
        client.send()
        client.await_start()
        server.kill_worker()
        server.wait()
        assert client.rows() == [("running", None, None)]
        ends = [row for path in answered for row in rows_of(server, path)]
        assert len(ends) == len(answered)
        assert set(ends) <= {("success", None, 200), ("running", None, None)}
        assert set(ends[:10]) == {("success", None, 200)}  # an end is written soon after the answer
    with running(kind, tmp_path) as server:
        thread = client.token
        assert httpx.post(f"{server.url}/continue/counts_checkpoints/{thread}", timeout=PATIENCE).text == "1"
    assert checked(server) == "ok"


def test_the_page_has_the_tables_that_are_tested() -> None:
    assert tables() in PAGE.read_text(), "docs/endings.md says otherwise: run python -m tests.endings"


OURS = (ROOT / "skeino", ROOT / "skeino_asgi")
COMPLAINTS = ("never awaited", "never retrieved", "was destroyed but it is pending", "Event loop is closed")


def troubles_of(log: str) -> list[str]:
    """Tracebacks that end in the package, and what asyncio complains of."""
    found = [complaint for complaint in COMPLAINTS if complaint in log]
    for traceback in re.split(r"Traceback \(most recent call last\):", log)[1:]:
        frames = re.findall(r'^[\s|]*File "([^"]+)", line \d+', traceback, re.MULTILINE)
        if frames and any(Path(frames[-1]).is_relative_to(package) for package in OURS):
            found.append(traceback)
    return found
