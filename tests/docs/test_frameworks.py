"""docs/frameworks.md: each framework's block is an application that does what the page says."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import pytest
from asgi_lifespan import LifespanManager
from django.core.signals import got_request_exception  # type: ignore[import-untyped]
from django.test import override_settings  # type: ignore[import-untyped]
from django.urls import path as django_path  # type: ignore[import-untyped]
from litestar import post

from skeino.persistence import open_persistence
from tests.docs.blocks import run_python
from tests.frameworks.conftest import with_its_own_state
from tests.frameworks.django_app import configure
from tests.http_client import httpx


class UrlConf:
    """What Django takes for a module of URLs."""

    def __init__(self, urlpatterns: list[Any]) -> None:
        self.urlpatterns = urlpatterns


@pytest.fixture
async def names(builder: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, Any]]:
    """What the page's names stand for in the end."""
    configure()
    monkeypatch.setitem(sys.modules, "__docs__", ModuleType("__docs__"))  # Litestar looks up its handlers' module
    names = await run_python("docs/frameworks.md", builder=builder)
    yield names
    got_request_exception.disconnect(names["report_from_django"])  # which is all of Django's, in all tests


async def send(names: dict[str, Any], app: str, path: str, **options: Any) -> tuple[httpx.Response, dict[str, Any]]:
    """The answer of one of the page's applications, and the run's row, read after shutdown."""
    async with LifespanManager(with_its_own_state(names[app])) as manager:
        transport = httpx.ASGITransport(app=manager.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post(path, headers={"X-Thread-ID": "t1"}, **options)
    async with open_persistence(names["tracker"].settings) as persistence:
        row = await persistence.metadata_store.get_run(response.headers["x-run-id"])
    assert row is not None
    return response, dict(row)


@pytest.mark.parametrize("app", ["fastapi_app", "litestar_app", "quart_app", "django_app", "blacksheep_app"])
async def test_each_application_of_the_page_talks(names: dict[str, Any], app: str) -> None:
    options = {"params": {"message": "Hello"}} if app == "fastapi_app" else {"content": b"Hello"}
    with override_settings(ROOT_URLCONF=UrlConf(names["urlpatterns"])):
        response, row = await send(names, app, "/chat", **options)
    assert response.is_success
    assert response.json() == {"messages": ["Hello", "You said Hello"]}
    assert (row["status"], row["thread_id"], row["checkpoint_count"]) == ("success", "t1", 3)


async def test_the_bare_one_and_the_mounted_one_too(names: dict[str, Any]) -> None:
    response, row = await send(names, "bare_app", "/")
    assert (response.status_code, row["thread_id"], row["checkpoint_count"]) == (204, "t1", 3)
    response, row = await send(names, "outer", "/sub/threads/t2")
    assert (response.status_code, row["thread_id"], row["checkpoint_count"]) == (204, "t2", 3)


async def test_the_report_is_a_run_of_its_own(names: dict[str, Any]) -> None:
    _, row = await send(names, "quart_app", "/reports")
    async with open_persistence(names["tracker"].settings) as persistence:
        (report,) = await persistence.metadata_store.search_runs(thread_id="reports")
    assert (report["status"], report["checkpoint_count"]) == ("success", 3)
    assert report["metadata"] == {"asked_by": row["run_id"]}


@pytest.mark.parametrize("app", ["litestar_that_reports", "quart_app", "django_app", "blacksheep_app"])
async def test_the_hooks_report_the_exception_to_the_row(names: dict[str, Any], app: str) -> None:
    async def fail() -> Any:
        raise AttributeError("password=hunter2 is wrong")

    async def fail_on_django(request: Any) -> Any:
        raise AttributeError("password=hunter2 is wrong")

    names["quart_app"].add_url_rule("/fail", view_func=fail, methods=["POST"])
    names["application"].router.add_post("/fail", fail)
    django_urls = UrlConf([django_path("fail", fail_on_django)])
    if app == "litestar_that_reports":
        assert (await send(names, app, "/chat", content=b"Hello"))[0].is_success
        names[app].register(post("/fail")(fail))
    with override_settings(ROOT_URLCONF=django_urls):
        response, row = await send(names, app, "/fail", content=b"Hello")
    assert response.status_code == 500
    assert row["error"] is not None
    assert (row["status"], row["http_status"]) == ("error", 500)
    assert (row["error"]["code"], row["error"]["type"]) == ("exception", "AttributeError")
    assert "hunter2" not in row["error"]["message"]
