"""`RunLogFilter`: puts the current run's and thread's ids on every log record."""

from __future__ import annotations

import logging

from skeino.runs import current_run


class RunLogFilter(logging.Filter):
    """Adds `run_id` and `thread_id` to log records ("-" outside of a run); it filters nothing out.

    Put it on a handler, so that records of all loggers pass it: `handler.addFilter(RunLogFilter())`, with a
    format such as `"%(levelname)s %(run_id)s %(thread_id)s %(message)s"`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        run = current_run()
        record.run_id = "-" if run is None else run.run_id
        record.thread_id = "-" if run is None or run.thread_id is None else run.thread_id
        return True
