"""The HTTP client of the tests: `from tests.http_client import httpx`.

Starlette's TestClient asks for httpx2 and deprecates httpx; the names used here are the same in both.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx

__all__ = ["httpx"]
