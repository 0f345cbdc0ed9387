"""Every ending on every server: the run's row says what happened."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from tests.endings.client import client_of, rows_of
from tests.endings.endings import ENDINGS, Ending, Row
from tests.endings.servers import SERVERS, Running, Server, eventually, running

EVERY = [ending for endings in ENDINGS.values() for ending in endings]
LASTING = [ending for ending in EVERY if ending.stop is None and not ending.more]
ALONE = [ending for ending in EVERY if ending.stop is not None or ending.more]

tokens = (f"token{number}" for number in count())


@pytest.fixture(scope="module", params=SERVERS, ids=lambda server: server.name)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One process for all endings that it survives."""
    with running(request.param, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.mark.parametrize("ending", LASTING, ids=lambda ending: ending.name)
def test_a_run_ends_as_its_request_did(server: Running, ending: Ending) -> None:
    if server.server not in ending.servers:
        return
    expected = ending.row_on(server.server)
    with client_of(server, f"/{ending.configuration}/{ending.behaviour}/{next(tokens)}") as client:
        ending.client(client)
        if expected.status is not None:
            eventually(client.has_ended, server)
        assert [Row(*row) for row in client.rows()] == [expected]


def test_a_server_stops_in_order_after_all_that(server: Running) -> None:
    server.ask_to_stop(signal.SIGTERM)
    server.wait()
    assert "running" not in [row[0] for row in rows_of(server)]
    assert troubles_of(server.log) == []


@pytest.mark.parametrize("ending", ALONE, ids=lambda ending: ending.name)
@pytest.mark.parametrize("kind", SERVERS, ids=lambda server: server.name)
def test_a_run_ends_as_its_server_did(kind: Server, ending: Ending, tmp_path: Path) -> None:
    if kind not in ending.servers:
        return
    expected = ending.row_on(kind)
    path = f"/{ending.configuration}/{ending.behaviour}/{next(tokens)}"
    with running(kind, tmp_path, grace=ending.grace, more=ending.more) as server, client_of(server, path) as client:
        ending.client(client)
        if ending.stop is not None:
            ending.stop(client)
            server.wait()
        else:
            eventually(client.has_ended, server)
        assert [Row(*row) for row in client.rows()] == [expected]
        assert len(rows_of(server)) == 1
        assert troubles_of(server.log) == []


OURS = re.compile(r"[\\/]skeino(_asgi)?[\\/]")
COMPLAINTS = ("never awaited", "never retrieved", "was destroyed but it is pending", "Event loop is closed")


def troubles_of(log: str) -> list[str]:
    """Tracebacks that end in the package, and what asyncio complains of."""
    found = [complaint for complaint in COMPLAINTS if complaint in log]
    for traceback in re.split(r"Traceback \(most recent call last\):", log)[1:]:
        frames = re.findall(r'^[\s|]*File "([^"]+)", line \d+', traceback, re.MULTILINE)
        if frames and OURS.search(frames[-1]):
            found.append(traceback)
    return found
