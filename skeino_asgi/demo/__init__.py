"""The application that `python -m skeino_asgi demo` serves, written as one would write one's own."""
