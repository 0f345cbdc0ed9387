"""The bugs of `python -m tests.chaos seeded`: each still has its place in the code, and one of them is tried."""

import pytest

from tests.chaos.seeded import BUGS, ROOT, BrokenError, Bug, copy_of, seed, tried


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "_"))
def test_the_bug_has_its_place(bug: Bug) -> None:
    assert (ROOT / bug.file).read_text().count(bug.right) == 1


def test_a_bug_whose_place_has_gone_is_no_bug() -> None:
    bug = Bug("nothing", "skeino/runs.py", "what does not stand there", "", "", "")
    with copy_of(ROOT) as copy, pytest.raises(ValueError, match="has 0 places, not one"):
        seed(copy, bug)


@pytest.mark.slow
def test_a_harness_passes_without_the_bug_and_fails_with_it() -> None:
    (bug,) = (bug for bug in BUGS if bug.name == "whoever comes last is the next")
    with copy_of(ROOT) as copy:
        assert tried(copy, bug) is None
        seed(copy, bug)
        assert "overtaken" in (tried(copy, bug) or "")


@pytest.mark.slow
def test_a_harness_that_is_broken_itself_catches_nothing() -> None:
    bug = Bug("a harness is broken", "tests/chaos/turns.py", "import asyncio\n", "", "tests.chaos turns", "")
    with copy_of(ROOT) as copy:
        seed(copy, bug)
        with pytest.raises(BrokenError, match="NameError"):
            tried(copy, bug)
