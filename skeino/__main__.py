"""`python -m skeino`, also installed as the command `skeino`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; returns the process's exit status."""
    try:
        from skeino.cli import run
    except ImportError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in ("typer", "rich", "click"):
            raise
        print(f"The command line needs the package {exc.name!r}: run pip install 'skeino-asgi[cli]'.", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
