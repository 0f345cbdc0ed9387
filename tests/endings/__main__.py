"""python -m tests.endings: writes the tables of docs/endings.md."""

from tests.endings.page import PAGE, written

PAGE.write_text(written(PAGE.read_text()))
