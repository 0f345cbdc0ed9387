"""The demo's graph: a router, an answer, a failure, an approval; and the model, which needs no key and no network."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any, Final, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, interrupt

ChatGraph = CompiledStateGraph[MessagesState, None, MessagesState, MessagesState]

SECONDS_PER_WORD: Final = 0.03

_DECISIONS: Final = {"approve": "Approved.", "decline": "Declined."}


class IntendedError(RuntimeError):
    """The failure that a turn was asked for."""


def build_graph(checkpointer: BaseCheckpointSaver[Any]) -> ChatGraph:
    """The compiled graph; its threads live in the checkpointer."""
    builder = StateGraph(MessagesState)
    builder.add_node("router", route)
    builder.add_node("answer", answer)
    builder.add_node("fail", fail)
    builder.add_node("approval", ask_for_approval)
    builder.add_edge(START, "router")
    builder.add_edge("approval", "answer")
    builder.add_edge("answer", END)
    return builder.compile(checkpointer=checkpointer, name="demo")


def route(state: MessagesState) -> Command[Literal["answer", "fail", "approval"]]:
    """Choose the node by the words of the last message."""
    words = _last_words(state)
    if re.search(r"\bfail", words, re.IGNORECASE):
        return Command(goto="fail")
    if re.search(r"\bapprov|\bask me first\b", words, re.IGNORECASE):
        return Command(goto="approval")
    return Command(goto="answer")


async def answer(state: MessagesState, config: RunnableConfig) -> dict[str, list[BaseMessage]]:
    """Let the model answer; `stream_mode="messages"` hands on its words as they come."""
    return {"messages": [await WordByWordModel().ainvoke(state["messages"], config)]}


def fail(state: MessagesState) -> None:
    """Raise, as a tool or a provider might."""
    raise IntendedError("This turn was asked to fail, so the node 'fail' raised an IntendedError.")


def ask_for_approval(state: MessagesState) -> dict[str, list[BaseMessage]]:
    """Pause until a human decides; a resumed run enters this node again and gets the decision here."""
    decision = interrupt({"question": f"May I go ahead with {_quoted(_last_words(state))}?"})
    return {"messages": [HumanMessage(_DECISIONS[decision])]}


class WordByWordModel(BaseChatModel):
    """Answers from the messages alone, one word at a time."""

    seconds_per_word: float = SECONDS_PER_WORD

    @property
    def _llm_type(self) -> str:
        return "skeino-demo"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(_reply(messages)))])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for word in re.findall(r"\S+\s*", _reply(messages)):
            await asyncio.sleep(self.seconds_per_word)
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=word))
            if run_manager is not None:
                await run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk


def _reply(messages: list[BaseMessage]) -> str:
    said = [str(message.content) for message in messages if isinstance(message, HumanMessage)]
    last = said[-1]
    if last == _DECISIONS["approve"]:
        return (
            f"Thank you: with your approval I went ahead with {_quoted(said[-2])}. The run that asked had ended, "
            "and this is a new one on the same thread, resumed from the checkpoint at which the graph paused."
        )
    if last == _DECISIONS["decline"]:
        return (
            f"Understood: {_quoted(said[-2])} stays undone. Your decision was a run of its own on this thread, "
            "resumed from the checkpoint at which the graph paused."
        )
    if len(said) == 1:
        return (
            f"You wrote {_quoted(last)}. I am a small model without a key or a network, so I only quote and "
            "count. The rest is real: LangGraph streams these words, the state after each step is a checkpoint, "
            "and the list of runs shows which run wrote it."
        )
    return (
        f"You wrote {_quoted(last)}, your message number {len(said)} on this thread. It began with "
        f"{_quoted(said[0])}. I know because the graph's state was read from its last checkpoint, which "
        "outlives the server's process wherever the checkpointer is durable."
    )


def _last_words(state: MessagesState) -> str:
    return str(state["messages"][-1].content)


def _quoted(words: str) -> str:
    line = " ".join(words.split())
    line = line.rstrip(".") if len(line) <= 80 else f"{line[:79].rstrip()}…"
    return f"“{line}”"
