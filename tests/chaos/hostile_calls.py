"""Calls of a store and of a saver, with hostile arguments, and what may become of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from langgraph.checkpoint.base import empty_checkpoint

from skeino.runs import new_id
from skeino.testing.making import ending, started
from tests.chaos import hostile_app
from tests.chaos import hostile_inputs as inputs
from tests.chaos.hostile_inputs import CANARY

Call = Callable[[], Awaitable[Any]]


async def answered(call: Call) -> Any:
    """The answer, or the name of one of skeino's errors, whose sentence repeats nothing; any other is raised."""
    try:
        return await call()
    except Exception as exc:
        known = isinstance(exc, TypeError) and "there is no argument" in str(exc)  # said of a search by another name
        if CANARY in str(exc) or not (known or hostile_app.is_refusal(exc)):
            raise
        return type(exc).__name__


def of_store(store: Any, dice: Random, victim: str) -> Call:
    """One of a store's operations, by mallory where it asks for an owner of the victim's thread."""
    an_id, mapping, value = inputs.an_id(dice), inputs.mapping(dice), inputs.value(dice)
    owner = dice.choice(("ann", "mallory", None, an_id))
    run_id = dice.choice((new_id(), an_id))
    calls: tuple[Callable[[], Awaitable[Any]], ...] = (
        lambda: store.start_run(
            run_id,
            worker_id="attacker",
            thread_id=an_id,
            owner=owner,
            metadata=mapping,
            kwargs=inputs.mapping(dice),
        ),
        lambda: store.attach_thread(run_id, an_id, owner=owner),
        lambda: _finish(store, dice, owner, mapping, value),
        lambda: store.interrupt_runs(an_id, {"code": "c", "type": None, "message": value}),
        lambda: store.claim_thread(run_id, victim if dice.random() < 0.2 else an_id, owner="mallory"),
        lambda: store.get_queue(an_id),
        lambda: store.change_queue(an_id, [run_id], dice.choice(([], [run_id], [value])), takes=dice.random() < 0.5),
        lambda: _done(store.release_thread(run_id, an_id)),
        lambda: store.get_run(run_id, owner=owner),
        lambda: store.search_runs(**inputs.search(dice)),
        lambda: store.search_threads(**inputs.search(dice)),
        lambda: store.update_run(run_id, metadata=mapping, owner=owner),
        lambda: _created(store, an_id, owner, mapping),
        lambda: store.get_thread(victim if dice.random() < 0.2 else an_id, owner="mallory"),
        lambda: store.update_thread(an_id, metadata=mapping, config=mapping, ttl=value, owner="mallory"),
        lambda: store.delete_thread(victim if dice.random() < 0.2 else an_id, force=True, owner="mallory"),
        lambda: store.restore_threads([value, mapping]),
        lambda: store.restore_runs([mapping]),
    )
    return dice.choice(calls)


def of_saver(saver: Any, dice: Random, thread_id: Any) -> Call:
    """One of a saver's operations on that thread, or what stands in for one."""
    config: Any = {"configurable": {**inputs.configurable(dice), "thread_id": thread_id}}
    if dice.random() < 0.3:
        config["metadata"] = inputs.mapping(dice)
    if dice.random() < 0.02:
        config = inputs.value(dice)
    value = inputs.value(dice)
    metadata = inputs.mapping(dice)
    if isinstance(metadata, dict):  # as LangGraph needs it, which goes on from there
        metadata |= {"source": "loop", "step": 1}
    versions = dict.fromkeys("xy", saver.get_next_version(None, None))
    checkpoint = {**empty_checkpoint(), "channel_values": {"x": value, "y": "fine"}, "channel_versions": versions}
    in_place = (
        {**config, "configurable": {"checkpoint_ns": "", **config["configurable"]}} if _is_config(config) else config
    )

    async def listed() -> Any:
        before: Any = None if dice.random() < 0.6 else dice.choice((config, value, {"configurable": {}}))
        limit = dice.choice((1, 5, None, inputs.scalar(dice)))
        if isinstance(limit, int) and not 0 <= limit < 100:
            limit = 3
        given = inputs.mapping(dice) if dice.random() < 0.7 else None
        return [one async for one in saver.alist(config, filter=given, before=before, limit=limit)]

    calls: tuple[Callable[[], Awaitable[Any]], ...] = (
        lambda: saver.aget_tuple(config),
        listed,
        lambda: saver.aput(in_place, checkpoint, metadata, versions),
        lambda: saver.aput(in_place, checkpoint, {"source": "loop", "step": 1}, versions),
        lambda: saver.aput_writes(
            in_place, [("x", value)], dice.choice(("task", inputs.text(dice))), inputs.text(dice)
        ),
        lambda: saver.adelete_thread(thread_id),
        lambda: saver.acopy_thread(thread_id, dice.choice((new_id(), inputs.an_id(dice)))),
        lambda: saver.aprune(dice.choice(([thread_id], value)), strategy=dice.choice(("keep_latest", "delete", value))),
        lambda: saver.adelete_for_runs(dice.choice(([new_id()], value))),
        lambda: saver.aget_delta_channel_history(config=config, channels=["x"]),
    )
    return dice.choice(calls)


async def _finish(store: Any, dice: Random, owner: Any, metadata: Any, value: Any) -> None:
    run_id = await started(store, dice.choice((None, "t1")), worker_id="attacker", owner="ann")
    field_name = dice.choice([*ending(run_id)])
    finish: Any = {**ending(run_id, worker_id="attacker", metadata=metadata), field_name: value}
    await store.finish_run(finish)


async def _created(store: Any, thread_id: Any, owner: Any, metadata: Any) -> None:
    """What is accepted is kept as it is."""
    made = await store.create_thread(thread_id, owner=owner, metadata=metadata)
    found = await store.get_thread(thread_id)
    if found is not None:  # another may have deleted it meanwhile, and made it again
        assert found["created_at"] != made["created_at"] or found["thread_id"] == thread_id


async def _done(answer: Awaitable[Any]) -> Any:
    return await answer


def _is_config(config: Any) -> bool:
    return isinstance(config, dict) and isinstance(config.get("configurable"), dict)
