"""The figures of a harness on each scheme, as a table."""

from typing import Any

from rich.table import Table


def table_of(title: str, result: dict[str, Any]) -> Table:
    """A row for each figure, a column for each scheme."""
    lease = result["lease_seconds"]
    table = Table(title=f"{title}; leases of {lease:g} s" if lease else title)
    schemes = result["schemes"]
    table.add_column("")
    for scheme in schemes:
        table.add_column(scheme, justify="right")
    for name in next(iter(schemes.values())):
        values = [figures[name] for figures in schemes.values()]
        shown = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in values]
        table.add_row(name.replace("_", " "), *shown)
    return table
