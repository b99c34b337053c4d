"""The list of mutations fits the code; `python tests/mutations.py` tries them."""

from tests.mutations import MUTATIONS, PROJECT


def test_every_text_to_break_is_there_once():
    for file, old, new, breaks, _ in MUTATIONS:
        assert (PROJECT / file).read_text().count(old) == 1, f"{file}: {breaks}"
        assert old != new


def test_every_test_that_must_notice_exists():
    assert all((PROJECT / tests.split()[0]).is_file() for *_, tests in MUTATIONS)
