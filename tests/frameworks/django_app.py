"""Django: settings are one for the process, and its views a module."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path
from starlette.types import ASGIApp

from tests.frameworks import handlers
from tests.frameworks.recipe import Recipe


def configure() -> None:
    """Django's settings for the tests, once."""
    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"], ROOT_URLCONF="tests.frameworks.django_app", SECRET_KEY="tests", LOGGING_CONFIG=None
        )
        django.setup()


def build(recipe: Recipe) -> ASGIApp:
    configure()
    app: ASGIApp = get_asgi_application()
    return app


def state_of(request: HttpRequest) -> Any:
    return SimpleNamespace(**request.scope["state"])


async def chat(request: HttpRequest, thread_id: str = "") -> HttpResponse:
    return JsonResponse(await handlers.chat(state_of(request), json.loads(request.body)["word"]))


def turn(request: HttpRequest) -> HttpResponse:
    return JsonResponse(handlers.turn(state_of(request)))


async def fail(request: HttpRequest) -> HttpResponse:
    handlers.fail()
    return HttpResponse()


async def teapot(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=418)


async def broken(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=503)


async def stream(request: HttpRequest) -> HttpResponseBase:
    return StreamingHttpResponse(handlers.stream(state_of(request)))


urlpatterns = [
    path("chat", chat),
    path("threads/<str:thread_id>/chat", chat),
    path("sync", turn),
    path("fail", fail),
    path("teapot", teapot),
    path("broken", broken),
    path("stream", stream),
]
