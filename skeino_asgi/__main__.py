"""`python -m skeino_asgi demo`: see skeino at work in a browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m skeino_asgi", description="Durable state and a record of every run for LangGraph applications."
    )
    parser.add_argument("command", choices=["demo"], help="demo: serve a chat page over a LangGraph graph")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the command's own, see: demo --help")
    options = parser.parse_args(arguments).options
    try:
        from skeino_asgi.demo import server
    except ImportError as exc:
        if exc.name != "uvicorn":
            raise
        print("The demo needs the package 'uvicorn': run pip install 'skeino-asgi[demo]'.", file=sys.stderr)
        return 2
    return server.main(options)


if __name__ == "__main__":
    sys.exit(main())
