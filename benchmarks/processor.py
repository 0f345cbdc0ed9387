"""Processor time: this process's own, and that of all the others, the database and the system among them.

What a machine's cores have done is in `/proc/stat`, in hundredths of a second (https://docs.kernel.org/filesystems/proc.html),
so on Linux only, and only where nothing else is at work does "the others" mean the database.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6)
"""The columns user, nice, system, irq and softirq."""


@dataclass(frozen=True)
class Spent:
    """Seconds of all cores."""

    client: float
    others: float

    def since(self, before: Spent) -> Spent:
        """What has been spent from then until now."""
        return Spent(self.client - before.client, self.others - before.others)

    def by(self, operations: float) -> Spent:
        """What each of so many has taken."""
        return Spent(self.client / operations, self.others / operations)


def spent() -> Spent | None:
    """So far; None where that cannot be read."""
    if not _STAT.exists():
        return None
    columns = _STAT.read_text().splitlines()[0].split()[1:]
    client = time.process_time()
    return Spent(client, sum(int(columns[number]) for number in _BUSY) / os.sysconf("SC_CLK_TCK") - client)
