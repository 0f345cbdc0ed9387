"""Django, wrapped in its asgi.py: state and runs in a SQLite file, which a restart does not touch.

Purpose   Views that read `request.scope["state"]`; the settings and URLs of a project, for once in one file.
Install   pip install '.[sqlite]' django uvicorn             (in a checkout of the repository)
Run       uvicorn examples.django_sqlite:app                 (makes skeino.db in the current folder)

Expect

    $ curl -X POST http://127.0.0.1:8000/threads/t1/messages -d 'Hello'
    {"messages": ["Hello", "You said Hello"]}

Stop the server and start it again:

    $ curl -X POST http://127.0.0.1:8000/threads/t1/messages -d 'Again'
    {"messages": ["Hello", "You said Hello", "Again", "You said Again"]}
    $ curl http://127.0.0.1:8000/threads/t1
    {"status": "idle", "runs": ["success", "success"]}
"""

# mypy: disable-error-code="import-untyped, untyped-decorator"
from __future__ import annotations

import operator
from typing import Annotated, TypedDict

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIRequest
from django.http import JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST
from langgraph.graph import END, START, StateGraph

from skeino import SkeinoSettings
from skeino_asgi import RunMiddleware


class State(TypedDict):
    messages: Annotated[list[str], operator.add]


def answer(state: State) -> State:
    return {"messages": [f"You said {state['messages'][-1]}"]}


builder = StateGraph(State)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)


@require_POST
async def add_message(request: ASGIRequest, thread_id: str) -> JsonResponse:
    state = request.scope["state"]
    graph = builder.compile(checkpointer=state["checkpointer"])
    result = await graph.ainvoke({"messages": [request.body.decode()]}, state["run"].config)
    return JsonResponse({"messages": result["messages"]})


@require_GET
async def look(request: ASGIRequest, thread_id: str) -> JsonResponse:
    store = request.scope["state"]["metadata_store"]
    thread = await store.get_thread(thread_id)
    runs = await store.search_runs(thread_id=thread_id)
    wrote = [run["status"] for run in runs if run["checkpoint_count"]]  # without those that only looked
    return JsonResponse({"status": None if thread is None else thread["status"], "runs": wrote})


urlpatterns = [
    path("threads/<str:thread_id>/messages", add_message),
    path("threads/<str:thread_id>", look),
]

# A project has these in settings.py, and os.environ.setdefault("DJANGO_SETTINGS_MODULE", …) here, in asgi.py.
settings.configure(ALLOWED_HOSTS=["127.0.0.1", "localhost"], ROOT_URLCONF=__name__)

app = RunMiddleware(
    get_asgi_application(),
    settings=SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri="skeino.db"),
    thread_path="/threads/{thread_id}",
)
