"""Versions of channels, as the target's saver counts them.

LangGraph's MongoDB saver counts 1, 2, 3 and refuses texts; those of SQLite and PostgreSQL write texts with the number
first, "0…03.0.84", and a graph fails on a checkpoint that has both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint


def counts_in_texts(saver: BaseCheckpointSaver[Any]) -> bool:
    """Whether the saver's versions are texts."""
    return isinstance(saver.get_next_version(None, None), str)


def with_versions(checkpoint: Checkpoint, *, texts: bool, dump: Callable[[Any], tuple[str, bytes]]) -> Checkpoint:
    """A copy of the checkpoint whose versions are texts, or numbers; those that are so already stay.

    In one checkpoint equal versions stay equal and later ones later, which is all that a graph asks of them.
    """
    versions: Mapping[str, Any] = checkpoint["channel_versions"]
    wanted: dict[str, Any] = {
        channel: _text(version, _digest(checkpoint, channel, dump)) if texts else _number(version)
        for channel, version in versions.items()
    }
    seen: dict[str, Any] = {
        node: {
            channel: wanted[channel]
            if version == versions.get(channel)
            else _text(version, 0)
            if texts
            else _number(version)
            for channel, version in channels.items()
        }
        for node, channels in checkpoint["versions_seen"].items()
    }
    return {**checkpoint, "channel_versions": wanted, "versions_seen": seen}


def _digest(checkpoint: Checkpoint, channel: str, dump: Callable[[Any], tuple[str, bytes]]) -> int:
    """A number made of the channel's value.

    PostgreSQL's saver stores a value once for each channel and version. Where versions are mere numbers, the two
    branches of a forked thread have the same ones for different values.
    """
    if channel not in checkpoint["channel_values"]:
        return 0
    kind, data = dump(checkpoint["channel_values"][channel])
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=kind.encode()[:64]).digest()) % 10**16


def _text(version: Any, digest: int) -> Any:
    return f"{version:032}.0.{digest:016}" if isinstance(version, int) else version


def _number(version: Any) -> Any:
    return int(version.partition(".")[0]) if isinstance(version, str) else version
