"""What a worker needs, imported before it is forked: its drivers as well."""

import skeino.persistence.mongodb
import skeino.persistence.postgres
import skeino.persistence.sqlite
import tests.chaos.turns
import tests.chaos.worker

__all__ = ["skeino", "tests"]
