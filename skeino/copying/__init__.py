"""Moving house: threads, runs and graph state from one database to another."""

from __future__ import annotations

from skeino.copying.moving import copy_persistence, survey
from skeino.copying.report import CopyProgress, CopyReport, Count

__all__ = ["CopyProgress", "CopyReport", "Count", "copy_persistence", "survey"]
