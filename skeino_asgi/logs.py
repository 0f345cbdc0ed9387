"""The current run's and thread's ids on every line of a log: for `logging`, and for structlog."""

from __future__ import annotations

import logging
import re
from collections.abc import MutableMapping
from typing import Any, Final

from skeino.runs import current_run

_BETWEEN_WORDS: Final = re.compile(r"[\s\"'%]")


class RunLogFilter(logging.Filter):
    """Adds `run_id`, `thread_id` and `request_id` to log records ("-" where there is none); it filters nothing out.

    Put it on a handler, so that records of all loggers pass it: `handler.addFilter(RunLogFilter())`, with a
    format such as `"%(levelname)s %(run_id)s %(thread_id)s %(message)s"`. A thread's id is one word there, for a client
    may choose it: a space in it reads `%20`, so that it cannot pass for the rest of a line.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        run = current_run()
        record.run_id = "-" if run is None else run.run_id
        record.thread_id = "-" if run is None or run.thread_id is None else _one_word(run.thread_id)
        record.request_id = "-" if run is None or run.request_id is None else run.request_id
        return True


def add_run_context(logger: Any, method_name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: adds `run_id`, `thread_id` and `request_id`, those there are.

    `structlog.configure(processors=[add_run_context, ...])`. What the event itself says of them is kept.
    """
    run = current_run()
    if run is not None:
        event_dict.setdefault("run_id", run.run_id)
        if run.thread_id is not None:
            event_dict.setdefault("thread_id", run.thread_id)
        if run.request_id is not None:
            event_dict.setdefault("request_id", run.request_id)
    return event_dict


def _one_word(text: str) -> str:
    return text if text.isalnum() else _BETWEEN_WORDS.sub(lambda found: f"%{ord(found[0]):02X}", text)
