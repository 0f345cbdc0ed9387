"""A worker on a machine whose clock is an hour ahead: imported before anything that asks for the time."""

from __future__ import annotations

import datetime
import time
from typing import Any

AHEAD = 3600

_real, _time, _ns = datetime.datetime, time.time, time.time_ns
_now = _real.now


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _real)


class _Datetime(datetime.datetime, metaclass=_Kind):
    """What asks for the time through it gets a real one, an hour ahead."""

    __slots__ = ()

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return _now(tz) + datetime.timedelta(seconds=AHEAD)

    @classmethod
    def utcnow(cls) -> Any:
        return _now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=AHEAD)


def work(load: dict[str, Any], orders: Any, events: Any) -> None:
    """As `worker.work`."""
    datetime.datetime = _Datetime  # type: ignore[misc]
    time.time = lambda: _time() + AHEAD
    time.time_ns = lambda: _ns() + AHEAD * 10**9
    from tests.chaos import worker

    worker.work(worker.Load(**load), orders, events)
