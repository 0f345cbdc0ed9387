"""The matrix as data: each framework, each way of adding the middleware, and what is to be expected of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from skeino_asgi import RunMiddleware, combine_lifespans
from tests.frameworks import (
    bare_app,
    blacksheep_app,
    django_app,
    fastapi_app,
    litestar_app,
    quart_app,
    starlette_app,
)
from tests.frameworks.recipe import THREAD_PATH, Recipe


@dataclass(frozen=True)
class Framework:
    """What a framework has, and does with an exception."""

    name: str
    distribution: str | None
    build: Callable[[Recipe], ASGIApp]
    native: bool
    """It can add an ASGI middleware itself."""
    errors: Literal["inside", "outermost", "nowhere"] = "inside"
    """Where an exception becomes a 500: inside of any middleware, in the outermost layer, which raises it again, or
    not at all."""
    hooks: bool = True
    """It has hooks for start-up and shutdown."""
    starts_itself: bool = False
    """Without a lifespan its start-up hooks run with the first request."""
    synchronous: str = "in a worker thread"
    """Where it calls a synchronous handler. In a worker thread a graph's `invoke` blocks nobody."""
    background: bool = False
    """It has tasks that run after the response and belong to the request."""
    notices_leaving: bool = True
    """It hears of a client that leaves in the middle of a stream, and ends the stream."""


@dataclass(frozen=True)
class Way:
    """A way of adding the middleware."""

    name: str
    meaning: str
    middleware: Literal["native", "wrapped", "both", "around the outer", "either"]
    """`either`: native where the framework can, else wrapped."""
    mounted: bool = False
    lifespan: bool = True
    """The server runs a lifespan."""


FRAMEWORKS = [
    Framework(
        "bare ASGI",
        None,
        bare_app.build,
        native=False,
        errors="nowhere",
        synchronous="as you call it",
        background=True,
        notices_leaving=False,
    ),
    Framework("Starlette", "starlette", starlette_app.build, native=True, errors="outermost", background=True),
    Framework("FastAPI", "fastapi", fastapi_app.build, native=True, errors="outermost", background=True),
    Framework("Litestar", "litestar", litestar_app.build, native=True, background=True),
    Framework("Quart", "quart", quart_app.build, native=True),
    Framework("Django", "django", django_app.build, native=False, hooks=False),
    Framework(
        "BlackSheep",
        "blacksheep",
        blacksheep_app.build,
        native=False,
        starts_itself=True,
        synchronous="on the event loop",
        notices_leaving=False,
    ),
]

WAYS = [
    Way("native", "added in the framework's own way, the tracker in its lifespan", "native"),
    Way("wrapped", "`RunMiddleware(app)`, from outside", "wrapped"),
    Way("both", "native and wrapped, with one tracker: a request is one run, not two", "both"),
    Way(
        "mounted",
        "under `/sub` of a Starlette application, the middleware around that",
        "around the outer",
        mounted=True,
    ),
    Way(
        "in a mount",
        "under `/sub` of a Starlette application, the middleware native or wrapped there, `thread_path` as seen there",
        "either",
        mounted=True,
    ),
    Way("native, no lifespan", "native, under a server that runs no lifespan", "native", lifespan=False),
    Way("wrapped, no lifespan", "wrapped, under a server that runs no lifespan", "wrapped", lifespan=False),
]

NOT_NATIVE = {
    "bare ASGI": "a bare callable has nothing but its outside",
    "Django": "`MIDDLEWARE` takes callables of a request, which are not ASGI",
    "BlackSheep": "its middlewares are callables of a request and a handler, which are not ASGI",
}
"""Why some frameworks can only be wrapped."""

NO_BACKGROUND = {
    "Quart": "a task of `add_background_task` begins before the response and may outlive its run",
    "Django": "has none",
    "BlackSheep": "has none",
}
"""Why some frameworks have no tasks that run after the response and belong to the request."""


@dataclass(frozen=True)
class Cell:
    """A framework and a way."""

    framework: Framework
    way: Way

    def __str__(self) -> str:
        return f"{self.framework.name}: {self.way.name}"

    @property
    def exists(self) -> bool:
        return self.framework.native or self.way.middleware not in ("native", "both")

    @property
    def is_native(self) -> bool:
        """The framework adds the middleware itself."""
        return self.way.middleware in ("native", "both") or (self.way.middleware == "either" and self.framework.native)

    @property
    def prefix(self) -> str:
        return "/sub" if self.way.mounted else ""

    @property
    def hooks_run(self) -> bool:
        """The application's own start-up hook runs before it serves. `Mount` runs no lifespan below it."""
        return self.framework.hooks and self.way.lifespan and not self.way.mounted

    @property
    def journal(self) -> list[str]:
        """What the application's own hooks note, once the server is down."""
        if self.hooks_run:
            return ["start-up, tracker open", "shutdown, tracker open"]
        return ["start-up, tracker open"] if self.framework.starts_itself else []

    @property
    def sees_500(self) -> bool:
        """The middleware sees the answer to an exception, and adds its header to it."""
        if self.framework.errors == "inside" or self.way.middleware == "around the outer":
            return True
        return self.framework.errors == "outermost" and not (self.is_native and self.way.middleware != "both")

    @property
    def sees_exception(self) -> bool:
        """The middleware sees the exception itself, and keeps its class in the run's row."""
        return self.framework.errors != "inside"

    def build(self, recipe: Recipe) -> ASGIApp:
        """The application with the middleware added in this way."""
        recipe.native = self.is_native
        app = self.framework.build(recipe)
        tracker = recipe.tracker
        if self.way.middleware in ("wrapped", "both") or (self.way.middleware == "either" and not self.is_native):
            app = RunMiddleware(app, tracker=tracker, thread_path=THREAD_PATH)
        if not self.way.mounted:
            return app
        mount = Mount(self.prefix, app=app)
        if self.way.middleware == "around the outer":
            return RunMiddleware(Starlette(routes=[mount]), tracker=tracker, thread_path=self.prefix + THREAD_PATH)
        return Starlette(routes=[mount], lifespan=combine_lifespans(tracker.lifespan))


CELLS = [cell for framework in FRAMEWORKS for way in WAYS if (cell := Cell(framework, way)).exists]
