"""What the types promise, held by mypy and pyright alike (`make check`); nothing here is run."""
