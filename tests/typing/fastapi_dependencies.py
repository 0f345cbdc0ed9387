"""FastAPI's dependencies have the types of what they give."""

from typing import Any, assert_type

from fastapi import FastAPI
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import MessagesState, StateGraph

from skeino import Run
from skeino.persistence import MetadataStoreProtocol
from skeino_asgi.fastapi import Checkpointer, CurrentMetadataStore, CurrentRun

app = FastAPI()
builder: StateGraph[MessagesState] = StateGraph(MessagesState)


@app.post("/chat")
async def chat(message: str, run: CurrentRun, checkpointer: Checkpointer, store: CurrentMetadataStore) -> str:
    assert_type(run, Run)
    assert_type(run.config, RunnableConfig)
    assert_type(run.run_id, str)
    assert_type(run.thread_id, str | None)
    assert_type(checkpointer, BaseCheckpointSaver[Any])
    assert_type(store, MetadataStoreProtocol)
    await builder.compile(checkpointer=checkpointer).ainvoke({"messages": [HumanMessage(message)]}, run.config)
    run.fail("a sentence")
    run.fail(RuntimeError("or an exception"))
    run.fail(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return run.run_id
