"""python -m tests.frameworks: write the tables of docs/frameworks.md."""

from tests.frameworks.page import write

write()
