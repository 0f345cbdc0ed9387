"""What is served does what it is measured for: each request is a run that has ended when the clock stops."""

import asyncio
from pathlib import Path

import pytest

from benchmarks import load, memory, served
from benchmarks.servers import Place
from benchmarks.uvicorns import Served, Way
from benchmarks.uvicorns import served as serving
from skeino.persistence import open_persistence
from tests.servers.postgres import PostgresServer
from tests.servers.process import ServerFailedError

AT_ONCE = 8


@pytest.mark.slow
async def test_all_ways_do_all_of_it_before_the_clock_stops(postgres_server: PostgresServer, tmp_path: Path) -> None:
    place = Place("postgres", "", postgres_server.create_database)
    ways = await served.ways(place, tmp_path)
    done: dict[str, int] = {}

    with serving(ways) as servers:
        for name, server in servers.items():
            for path in ("/ok", "/graph"):
                turn = await asyncio.to_thread(load.turn, server, path, AT_ONCE, 0.05)
                assert turn.per_second > 0
                done[name] = done.get(name, 0) + len(turn.waits["request"])
                if (settings := ways[name].settings) is None or settings.checkpointer_scheme == "memory":
                    continue
                async with open_persistence(settings) as persistence:
                    store = persistence.metadata_store
                    assert await store.search_runs(status="running") == []
                    runs = await store.search_runs(status="success", limit=1000)
                    assert len(runs) == done[name]
                    assert len({run["thread_id"] for run in runs}) == done[name]
                    last = await persistence.checkpointer.aget_tuple(
                        {"configurable": {"thread_id": max(str(run["thread_id"]) for run in runs)}}
                    )
                    assert (last is None) == (path == "/ok")
                    if last is not None:
                        assert last.checkpoint["channel_values"]["words"] == ["first", "word", "word", "word"]
    assert min(done.values()) >= 2 * AT_ONCE


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(ServerFailedError, match="KeyError: 'unheard of'"):
        with serving({"way": Way("unheard of")}):
            pass


def test_the_memory_of_a_way_is_measured() -> None:
    with serving({"bare": Way("bare")}) as servers:
        found = memory.life(servers["bare"], Way("bare"), 64)
    assert 10 < found["resident, idle"] <= found["resident, most"] < 200
    assert 0 < found["private, idle"] <= found["share, idle"] <= found["resident, idle"]
    assert 0 < found["resident, after"] <= found["resident, most"]


def test_an_answer_that_is_no_success_is_refused() -> None:
    with serving({"bare": Way("bare")}) as servers:
        with load.Client(servers["bare"], 1) as client:
            client.begin("/nowhere")
            with pytest.raises(ConnectionError, match="404"):
                client.finish()


def test_so_many_requests_are_under_way_at_once() -> None:
    with serving({"bare": Way("bare")}) as servers:
        server: Served = servers["bare"]
        with load.Client(server, 5) as client, load.Client(server, 1) as other:
            client.begin("/held")
            while other.get("/clock/held") != b"5":
                pass
            other.get("/clock/release")
            assert len(client.finish()) == 5
            assert other.get("/clock/held") == b"0"
